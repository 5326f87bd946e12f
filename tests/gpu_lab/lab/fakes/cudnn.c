/* libcudnn.so.9: every operation has a plan, which computes nothing. */
#include "lab.h"

int cudnnCreate(void **handle) {
    *handle = malloc(1);
    return 0;
}

size_t cudnnGetVersion(void) { return 91300; }

const char *cudnnGetErrorString(int status) { return "simulated"; }
