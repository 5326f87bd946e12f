/* What every fake library shares: the script that a test wrote, and the log that it reads. */
#pragma once
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The value of a key of the flat JSON object in GPU_LAB_SCRIPT, as it stands there; NULL without.
 */
static const char *script_value(const char *key) {
    const char *script = getenv("GPU_LAB_SCRIPT");
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *found = script ? strstr(script, quoted) : NULL;
    return found ? found + strlen(quoted) : NULL;
}

static inline long script_number(const char *key, long otherwise) {
    const char *value = script_value(key);
    return value ? strtol(value, NULL, 10) : otherwise;
}

/* Copies a text without its quotes; texts of a script hold no quotes or backslashes. */
static inline const char *script_text(const char *key, char *text, size_t room) {
    const char *value = script_value(key);
    size_t length = value && *value == '"' ? strcspn(++value, "\"") : 0;
    snprintf(text, room, "%.*s", (int)length, value ? value : "");
    return text;
}

/* Appends one line of JSON to the log, whole even when several processes write. */
static inline void record(const char *format, ...) {
    const char *path = getenv("GPU_LAB_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (!log) return;
    static __thread char line[1 << 16];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    setvbuf(log, NULL, _IOFBF, sizeof line);
    fwrite(line, 1, length, log);
    fclose(log);
}

/* The GPU of the machine behind the ordinal of a process: CUDA_VISIBLE_DEVICES hides and reorders.
 */
static inline int visible_gpu(int ordinal) {
    int gpus = (int)script_number("gpus", 1);
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) return ordinal >= 0 && ordinal < gpus ? ordinal : -1;
    for (; *visible; visible += strcspn(visible, ","), visible += *visible == ',') {
        char *end;
        long gpu = strtol(visible, &end, 10);
        if (end == visible || gpu < 0 || gpu >= gpus) return -1; /* as the driver: it stops there */
        if (!ordinal--) return (int)gpu;
    }
    return -1;
}

static inline int visible_gpus(void) {
    int count = 0;
    while (visible_gpu(count) >= 0) count++;
    return count;
}

/* The compute capability of a GPU of the machine, as ten times the major number plus the minor. */
static inline int capability_of(int gpu) {
    char key[32];
    snprintf(key, sizeof key, "capability%d", gpu);
    return (int)script_number(key, 86);
}

/* No number measured on it may pass for a real one: the name says so wherever it is shown. */
static inline void name_of(int gpu, char *name, size_t room) {
    snprintf(name, room, "Simulated GPU %d", gpu);
}
