// How CUDA's work is cut up: plans cover it, fit the device, and depend on the shape alone.
#include <tuple>

#include "cuda/plan.h"
#include "testing.h"

using namespace cnnfast;

namespace {

// A convolution of stride 1 and the same size, and its 2x2 pool.
Conv2dShape conv_of(int64_t N, int64_t C, int64_t size, int64_t K, int64_t kernel, int64_t G = 1) {
  const int64_t pad = kernel / 2, out = size + 2 * pad - kernel + 1;
  return {N, C, size, size, K, kernel, kernel, out, out, G, 1, 1, pad, pad, pad, pad, 1, 1};
}
Pool2dShape pool_of(const Conv2dShape& s) { return {s.N, s.K, s.P, s.Q, 2, 2, s.P / 2, s.Q / 2, 2, 2, 0, 0, 1, 1}; }

}  // namespace

TEST(fused_plans_cover_the_map_and_fit) {
  for (const int64_t N : {1, 3, 65536})
    for (const int64_t C : {1, 3, 12, 40})
      for (const int64_t size : {4, 7, 14, 28, 61, 224})
        for (const int64_t K : {1, 5, 12, 24})
          for (const int64_t kernel : {3, 5}) {
            WHERE("N ", N, " C ", C, " size ", size, " K ", K, " kernel ", kernel);
            const Conv2dShape s = conv_of(N, C, size, K, kernel);
            const FusedPlan plan = fused_plan(s, pool_of(s));
            if (!plan.fits) continue;
            CHECK(plan.shared_bytes <= kSharedBytes);
            CHECK(plan.rows >= 1 && plan.bands * plan.rows >= size / 2 && (plan.bands - 1) * plan.rows < size / 2);
            CHECK(plan.images >= 1 && plan.images <= N && (plan.images == 1 || plan.bands == 1));
            CHECK(plan.threads % 32 == 0 && plan.threads >= 32 && plan.threads <= 1024);
            CHECK(plan.input.rows == 2 * plan.rows + kernel - 1);
            CHECK(plan.input.pitch >= size / 2 * 2 + kernel - 1 && plan.input.pitch % 2 == 0);
          }
}

TEST(the_lectures_layers_are_fused_without_bad_conflicts) {
  for (const auto& [C, size, K] : {std::tuple{1, 28, 12}, std::tuple{12, 14, 24}}) {
    const Conv2dShape s = conv_of(4096, C, size, K, 3);
    const FusedPlan forward = fused_plan(s, pool_of(s));
    CHECK(forward.fits);
    CHECK(bank_conflicts(forward.input.pitch, size / 2, forward.rows * size / 2) <= 2);
    for (const bool want_input : {false, true}) {
      const PoolSparsePlan backward = pool_sparse_plan(s, pool_of(s), want_input);
      CHECK(backward.fits && backward.shared_bytes <= kMostSharedBytes);
      CHECK(backward.threads % 32 == 0 && backward.threads <= 1024);
      CHECK(backward.slices >= 1 && backward.slices <= s.N);
    }
  }
}

TEST(bank_conflicts_are_counted) {
  // A row of windows is two rows of the tile: `pitch` pairs of floats.
  CHECK_EQ(bank_conflicts(2, 16, 16), 1);   // side by side
  CHECK_EQ(bank_conflicts(2, 1, 16), 2);    // every second pair, of sixteen
  CHECK_EQ(bank_conflicts(16, 1, 16), 16);  // all in one bank
  CHECK_EQ(bank_conflicts(16, 4, 16), 4);
  CHECK(bank_conflicts(windows_pitch(16, 4, 16), 4, 16) < 4);
}

TEST(matrix_products_are_taken_where_tiles_are_filled) {
  CHECK(!takes_implicit_gemm(forward_gather(conv_of(1, 1, 28, 12, 3))));
  CHECK(!takes_implicit_gemm(forward_gather(conv_of(1, 32, 28, 32, 3, 32))));  // depthwise
  CHECK(takes_implicit_gemm(forward_gather(conv_of(1, 64, 28, 64, 3))));
  Conv2dShape far = conv_of(1, 64, 28, 64, 3);
  far.stride_h = int64_t{1} << 40;
  CHECK(!takes_implicit_gemm(forward_gather(far)));
  Conv2dShape large = conv_of(1, 64, 28, 64, 3);
  large.H = large.W = int64_t{1} << 14;
  CHECK(!takes_mma(forward_gather(large)));  // 2^34 elements of an image
}

TEST(tiles_of_channels_are_small_where_blocks_are_few) {
  CHECK_EQ(mma_tile_channels(forward_gather(conv_of(1, 64, 28, 24, 3))), 32);
  CHECK_EQ(mma_tile_channels(forward_gather(conv_of(256, 64, 28, 64, 3))), 64);
  CHECK_EQ(mma_tile_channels(forward_gather(conv_of(1, 64, 28, 256, 3))), 64);
  CHECK_EQ(mma_tile_channels(forward_gather(conv_of(256, 64, 28, 256, 3))), 128);
}

TEST(weight_gradients_are_cut_into_slices_of_some_size) {
  for (const int64_t N : {1, 5, 4096})
    for (const int64_t C : {3, 64, 512})
      for (const int64_t K : {16, 64, 512})
        for (const int64_t kernel : {1, 3}) {
          WHERE("N ", N, " C ", C, " K ", K, " kernel ", kernel);
          const Conv2dShape s = conv_of(N, C, 14, K, kernel);
          const int64_t padded = round_up(C, int64_t{8}), pixels = s.N * s.P * s.Q;
          for (const WeightGradPlan& plan : {plain_weight_grad_plan(s), mma_weight_grad_plan(s, padded)}) {
            CHECK(plan.tiles_k * plan.filters >= K && (plan.tiles_k - 1) * plan.filters < K);
            CHECK(plan.tiles_c * plan.columns >= C * kernel * kernel);
            CHECK(plan.slices >= 1 && plan.slices <= 64);
            CHECK(plan.slices == 1 || pixels / plan.slices >= 512);
          }
        }
}

TEST(reductions_have_whole_warps_and_enough_terms) {
  for (const int64_t sums : {1, 12, 108, 5000})
    for (const int64_t terms : {1, 31, 1000, 3211264}) {
      WHERE("sums ", sums, " terms ", terms);
      const ReductionPlan plan = reduction_plan(sums, terms);
      CHECK(plan.slices >= 1 && plan.slices <= 64 && plan.slices <= max<int64_t>(1, terms));
      CHECK(plan.threads % 32 == 0 && plan.threads >= 32 && plan.threads <= 256);
    }
}
