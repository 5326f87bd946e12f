/* libcudart.so.13: device memory is host memory, so that data flows; kernels compute nothing. */
#include <cuda_runtime_api.h>
#include <malloc.h>
#include <stdatomic.h>
#include <time.h>

#include "lab.h"

static __thread int current;      /* the device of a thread, as its ordinal */
static __thread cudaError_t last; /* what cudaGetLastError returns */
static atomic_size_t used;        /* bytes of device memory */

static cudaError_t result(cudaError_t error) {
    if (error) last = error;
    return error;
}

static size_t memory(void) { return (size_t)script_number("memory_mb", 8192) << 20; }

/* --- the driver and its devices --- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = visible_gpus();
    return result(*count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device) {
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (visible_gpu(device) < 0) return result(cudaErrorInvalidDevice);
    if (device != current) record("{\"event\": \"set_device\", \"gpu\": %d}", visible_gpu(device));
    current = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    int gpu = visible_gpu(device);
    if (gpu < 0) return result(cudaErrorInvalidDevice);
    memset(properties, 0, sizeof *properties);
    name_of(gpu, properties->name, sizeof properties->name);
    properties->major = capability_of(gpu) / 10;
    properties->minor = capability_of(gpu) % 10;
    properties->totalGlobalMem = memory();
    properties->multiProcessorCount = 28;
    properties->maxThreadsPerBlock = properties->maxThreadsPerMultiProcessor = 1024;
    properties->warpSize = 32;
    properties->sharedMemPerBlock = 48 << 10;
    properties->maxGridSize[0] = properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    int capability = capability_of(visible_gpu(device));
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
        default: *value = 1024;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int room, int device) {
    snprintf(text, room, "0000:%02x:00.0", visible_gpu(device));
    return cudaSuccess;
}

cudaError_t cudaDeviceGetByPCIBusId(int *device, const char *text) {
    for (int ordinal = 0; visible_gpu(ordinal) >= 0; ordinal++) {
        char place[32];
        cudaDeviceGetPCIBusId(place, sizeof place, ordinal);
        if (!strcmp(place, text)) return *device = ordinal, cudaSuccess;
    }
    return result(cudaErrorInvalidDevice);
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = (int)script_number("cuda", 13000);
    return cudaSuccess;
}

/* --- errors --- */

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last;
    last = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void) { return last; }

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorNoDevice: return "cudaErrorNoDevice";
        case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
        default: return "unrecognized error code";
    }
}

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInsufficientDriver:
            return "CUDA driver version is insufficient for CUDA runtime version";
        default: return "unrecognized error code";
    }
}

/* --- memory --- */

cudaError_t cudaMalloc(void **pointer, size_t size) {
    *pointer = NULL;
    if (script_number("cuda", 13000) < 13000) return result(cudaErrorInsufficientDriver);
    if (used + size > memory()) return result(cudaErrorMemoryAllocation);
    if (posix_memalign(pointer, 256, size ? size : 1)) return result(cudaErrorMemoryAllocation);
    used += malloc_usable_size(*pointer);
    return cudaSuccess;
}

cudaError_t cudaFree(void *pointer) {
    if (pointer) used -= malloc_usable_size(pointer);
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t size, cudaMemPool_t p, cudaStream_t s) {
    return cudaMalloc(pointer, size);
}

cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return cudaFree(pointer); }

cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    *pointer = malloc(size ? size : 1);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **pointer, size_t size) { return cudaHostAlloc(pointer, size, 0); }

cudaError_t cudaFreeHost(void *pointer) {
    free(pointer);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = memory();
    *available = *total - used;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes,
                                     const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeDevice;
    attributes->device = current;
    attributes->devicePointer = attributes->hostPointer = (void *)pointer;
    return cudaSuccess;
}

/* --- streams, and the CUDA graphs that record them --- */

typedef struct Step {
    struct Step *next;
    void (*run)(void *state);
    void *state;
} Step;

struct CUgraph_st {
    Step *first, **end;
};

static struct CUgraph_st *recording; /* the graph of the stream that is recorded now */

/* Other fakes call this in place of work on a stream; false: nothing records, do it yourself. */
int lab_capture(void (*run)(void *), void *state) {
    if (!recording) return 0;
    Step *step = calloc(1, sizeof *step);
    step->run = run;
    step->state = state;
    *recording->end = step;
    recording->end = &step->next;
    return 1;
}

typedef struct {
    void *to;
    const void *from;
    size_t size;
    int value;
} Transfer;

static void transfer(void *state) {
    Transfer *it = state;
    it->from ? memmove(it->to, it->from, it->size) : memset(it->to, it->value, it->size);
}

static cudaError_t start_transfer(Transfer it) {
    Transfer *kept = recording ? malloc(sizeof *kept) : NULL;
    if (!kept) return transfer(&it), cudaSuccess;
    *kept = it;
    lab_capture(transfer, kept);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (size) memmove(to, from, size);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return size ? start_transfer((Transfer){to, from, size, 0}) : cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
    for (size_t row = 0; row < height; row++)
        memmove((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t size) {
    memset(to, value, size);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
    return start_transfer((Transfer){to, NULL, size, value});
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = malloc(1);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreate(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t run, void *state) {
    if (!lab_capture(run, state)) run(state);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    recording = calloc(1, sizeof *recording);
    recording->end = &recording->first;
    record("{\"event\": \"capture\"}");
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = recording;
    recording = NULL;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph,
                                 unsigned long long flags) {
    *executable = (cudaGraphExec_t)graph; /* its steps are kept when the graph is destroyed */
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    for (Step *step = ((cudaGraph_t)executable)->first; step; step = step->next)
        step->run(step->state);
    return cudaSuccess;
}

/* --- events, which carry the time of the host --- */

struct CUevent_st {
    struct timespec time;
};

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = calloc(1, sizeof **event);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return cudaEventCreate(event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    clock_gettime(CLOCK_MONOTONIC, &event->time);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = (to->time.tv_sec - from->time.tv_sec) * 1e3f +
                    (to->time.tv_nsec - from->time.tv_nsec) * 1e-6f;
    return cudaSuccess;
}
