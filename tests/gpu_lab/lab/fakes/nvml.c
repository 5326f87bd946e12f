/* libnvidia-ml.so.1: clocks, power and energy. A GPU that is there draws 100 W, all the time. */
#include <time.h>

#include "lab.h"

enum { SUCCESS, INVALID_ARGUMENT = 2, NOT_FOUND = 6, WATTS = 100 };

typedef struct {
    unsigned long long total, available, used;
} Memory;

/* A handle is the number of the GPU, from 1; NVML shows all GPUs, whatever a process may use. */
static int gpu_of(void *device) { return (int)(long)device - 1; }

int nvmlInit_v2(void) { return SUCCESS; }
int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error ? "Not Found" : "Success"; }

int nvmlSystemGetDriverVersion(char *text, unsigned room) {
    script_text("driver", text, room);
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = (int)script_number("cuda", 13000);
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)script_number("gpus", 1);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(long)(index + 1);
    return index < (unsigned)script_number("gpus", 1) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    int gpu = -1;
    sscanf(uuid, "GPU-simulated-%d", &gpu);
    return nvmlDeviceGetHandleByIndex_v2((unsigned)gpu, device);
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
    unsigned domain, number = -1u;
    sscanf(bus, "%x:%x", &domain, &number);
    return nvmlDeviceGetHandleByIndex_v2(number, device);
}

int nvmlDeviceGetName(void *device, char *name, unsigned room) {
    name_of(gpu_of(device), name, room);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned room) {
    snprintf(uuid, room, "GPU-simulated-%d", gpu_of(device));
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = capability_of(gpu_of(device)) / 10;
    *minor = capability_of(gpu_of(device)) % 10;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    memory->total = (unsigned long long)script_number("memory_mb", 8192) << 20;
    memory->used = memory->total / 16;
    memory->available = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *megahertz) {
    *megahertz = kind == 2 ? 7000 : 1500; /* of the memory, of everything else */
    return SUCCESS;
}

int nvmlDeviceGetMaxClockInfo(void *device, int kind, unsigned *megahertz) {
    *megahertz = kind == 2 ? 7000 : 1800;
    return SUCCESS;
}

/* 1 is idle, 4 the limit of power, 32 and 64 heat. */
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    *reasons = (unsigned long long)script_number("throttled", 0);
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(device, reasons);
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    *milliwatts = WATTS * 1000;
    return SUCCESS;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
    *milliwatts = 2 * WATTS * 1000;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = WATTS * (now.tv_sec * 1000ull + now.tv_nsec / 1000000);
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) {
    *degrees = 50;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    *current = *pending = (unsigned)script_number("mig", 0);
    return SUCCESS;
}
