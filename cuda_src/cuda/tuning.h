// which kernels are the faster ones on which GPUs: all that is tuned to an architecture
#pragma once

#include "../dcnv4.h"

namespace yolo_dcnv4 {

// of the code that runs on the current device, as 10 * major + minor; 0 where there is none
int architecture();

// those whose multiprocessors have 160 KB and more of shared memory, and multiply tf32 quickly
inline bool is_large(int architecture) {
  return architecture == 80 || architecture == 90 || architecture == 100 || architecture == 103;
}

// Dense products need tensor cores, and for float32 such that multiply tf32 quickly.
inline bool tile_products_pay(DType dtype, int architecture) {
  switch (dtype) {
    case DType::float16:
    case DType::bfloat16:
      return architecture >= 80;
    case DType::float32:
      return is_large(architecture);
    default:
      return false;
  }
}

// Features staged for the forward pass need room for several blocks at once.
inline bool staged_features_pay(int architecture) { return is_large(architecture); }

// Copies that a thread does not wait for came with 8.0; measured on 9.0.
inline bool fetching_ahead_pays(int architecture) { return architecture >= 80; }

// Bulk copies need the engine that came with 9.0.
inline bool bulk_copies_pay(int architecture) { return architecture >= 90; }

}  // namespace yolo_dcnv4
