// libnvinfer_plugin.so.10 and .11: the plugins that TensorRT brings along, of which two will do.
#include "tensorrt.hpp"

extern "C" void lab_register(const char *plugin);  // of our libnvinfer

extern "C" bool initLibNvInferPlugins(void *, const char *) {
    record("{\"event\": \"plugins\"}");
    lab_register("EfficientNMS_TRT");
    lab_register("ROIAlign_TRT");
    return true;
}
