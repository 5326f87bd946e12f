/* libcuda.so.1, the driver: what `qconvert doctor` asks, and whom ONNX Runtime finds there. */
#include <cuda.h>

#include "lab.h"

CUresult cuInit(unsigned flags) { return (CUresult)script_number("cu_init", 0); }

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error ? "simulated error" : "no error";
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = (int)script_number("cuda", 13000);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    *count = visible_gpus();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return visible_gpu(ordinal) < 0 ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int room, CUdevice device) {
    name_of(visible_gpu(device), name, room);
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    int capability = capability_of(visible_gpu(device));
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

/* Contexts are numbers: there is one for each GPU. */
CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    *context = (CUcontext)1;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { return cuStreamGetCtx(NULL, context); }
