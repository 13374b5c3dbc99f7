// the operators of the schema, over what a backend has to provide
#pragma once

#include <tuple>
#include <vector>

#include "host.h"

namespace yolo_dcnv4 {

// A backend has
//   Scope(like, problem), which lives as long as work is prepared and started, and refuses what the kernels cannot
//   take; forward(args, like) and backward(args, like, deterministic), which fill memory that lies where `like` does.
template <typename Backend>
struct Operators {
  static Tensor forward(
      const Tensor& value, const Tensor& offset_mask, int64_t groups, std::vector<int64_t> window, double offset_scale,
      bool remove_center, bool softmax) {
    return run(
        value, map_of("value", value), map_of("offset_mask", offset_mask),
        {groups, window, offset_scale, remove_center, softmax});
  }

  static Tensor forward_packed(
      const Tensor& packed, int64_t groups, std::vector<int64_t> window, double offset_scale, bool remove_center,
      bool softmax, int64_t channels) {
    const auto [value, offset_mask] = split(map_of("packed", packed), channels);
    return run(packed, value, offset_mask, {groups, window, offset_scale, remove_center, softmax});
  }

  static std::tuple<Tensor, Tensor> backward(
      const Tensor& grad_output, const Tensor& value, const Tensor& offset_mask, int64_t groups,
      std::vector<int64_t> window, double offset_scale, bool remove_center, bool softmax, bool needs_value,
      bool needs_offset_mask, bool deterministic) {
    const Gradients gradients = run_backward(
        value, map_of("grad_output", grad_output), map_of("value", value), map_of("offset_mask", offset_mask),
        {groups, window, offset_scale, remove_center, softmax}, deterministic,
        [&](const Problem& p) { return Gradients(value, p, needs_value, needs_offset_mask); });
    return {gradients.value, gradients.offset_mask};
  }

  static Tensor backward_packed(
      const Tensor& grad_output, const Tensor& packed, int64_t groups, std::vector<int64_t> window, double offset_scale,
      bool remove_center, bool softmax, int64_t channels, bool deterministic) {
    const auto [value, offset_mask] = split(map_of("packed", packed), channels);
    return run_backward(
               packed, map_of("grad_output", grad_output), value, offset_mask,
               {groups, window, offset_scale, remove_center, softmax}, deterministic,
               [&](const Problem& p) { return Gradients(packed, p); })
        .packed;
  }

 private:
  static Tensor run(const Tensor& like, const Map& value, const Map& offset_mask, const Options& options) {
    const Problem p = make_problem(value, offset_mask, options);
    const typename Backend::Scope scope(like, p);
    Tensor out = empty_output(like, p);
    Backend::forward(ForwardArgs{p, value.data, offset_mask.data, out.data_ptr()}, like);
    return out;
  }

  template <typename MakeRoom>
  static Gradients run_backward(
      const Tensor& like, const Map& grad_output, const Map& value, const Map& offset_mask, const Options& options,
      bool deterministic, const MakeRoom& make_room) {
    Problem p = make_problem(value, offset_mask, options);
    set_grad_output(p, grad_output);
    const typename Backend::Scope scope(like, p);
    Gradients gradients = make_room(p);
    Backend::backward(backward_args(p, grad_output, value, offset_mask, gradients), like, deterministic);
    return gradients;
  }
};

}  // namespace yolo_dcnv4
