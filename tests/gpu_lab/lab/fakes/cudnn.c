/* libcudnn.so.9: every operation has one plan, which needs no workspace and computes nothing. */
#include <stdint.h>

#include "lab.h"

/* Types of attributes, as cuDNN numbers them. */
enum { INTEGER = 3, NUMERICAL_NOTE = 11, DESCRIPTOR = 15, BEHAVIOR_NOTE = 19, SHORTER = 23 };

int cudnnCreate(void **handle) {
    *handle = malloc(1);
    return 0;
}

size_t cudnnGetVersion(void) { return 91300; }

const char *cudnnGetErrorString(int status) {
    return status ? "simulated error" : "simulated success";
}

int cudnnBackendCreateDescriptor(int kind, void **descriptor) {
    *descriptor = calloc(1, 1);
    return 0;
}

int cudnnBackendDestroyDescriptor(void *descriptor) {
    free(descriptor);
    return 0;
}

/* Descriptors that are asked for come from the caller: one of them is filled in, with nothing. */
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t room, int64_t *count,
                             void *values) {
    int has_none = type == NUMERICAL_NOTE || type == BEHAVIOR_NOTE;
    if (count) *count = has_none ? 0 : 1;
    if (type == INTEGER && values) memset(values, 0, room * sizeof(int64_t));
    if (type == SHORTER && values) memset(values, 0, room * sizeof(int32_t));
    return 0;
}
