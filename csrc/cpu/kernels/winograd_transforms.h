// The transforms of Winograd's minimal filtering F(m, r), made from their interpolation points.
//
//   Y = A^T [(G g G^T) * (B^T d B)] A      (Lavin & Gray, arXiv 1509.09308)
//
// with d an (m + r - 1)^2 input tile, g an r x r kernel and Y its m x m outputs. With points p_0, p_1, ... and
// infinity, M(x) = product of (x - p_l), M_j(x) = M(x) / (x - p_j):
//
//   A^T[i][j] = p_j^i              and, for infinity, 1 in the last row
//   G[j][k]   = p_j^k / M_j(p_j)   and, for infinity, 1 in the last column
//   B^T[j][k] = coefficient of x^k in M_j(x), in M(x) for infinity
//
// (Toom and Cook's multiplication of polynomials, transposed.) Points come as 0 and pairs +p, -p, for which the even
// and the odd terms are the same but for a sign: computed once, they are half the work.
//
// F(4, 3)'s points are usually 0, 1, -1, 2, -2. With 0, 3/4, -3/4, 3/2, -3/2, whose powers stay nearer to 1, its error
// is a third (docs/lab-notes.md), at the price of no instruction.
#pragma once

#include "cpu/kernels/constant.h"

namespace cnnfast::CNNFAST_ISA {

template <int kRowCount, int kColumnCount>
struct Matrix {
  static constexpr int kRows = kRowCount, kColumns = kColumnCount;
  double at[kRows][kColumns] = {};

  constexpr Matrix<kColumnCount, kRowCount> transposed() const {
    Matrix<kColumnCount, kRowCount> result;
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kColumns; ++j) result.at[j][i] = at[i][j];
    return result;
  }
};

// F(kOutputs, kTaps) on tiles of kSize.
template <int kOutputs, int kTaps>
struct Winograd {
  static constexpr int kSize = kOutputs + kTaps - 1, kPoints = kSize - 1;
  static_assert(kPoints == 3 || kPoints == 5, "points are known for tiles of 4 and 6");

  static constexpr double point(int j) {
    constexpr double kThree[] = {0, 1, -1}, kFive[] = {0, 0.75, -0.75, 1.5, -1.5};
    return kPoints == 3 ? kThree[j] : kFive[j];
  }
  static constexpr double power(double x, int exponent) { return exponent == 0 ? 1 : x * power(x, exponent - 1); }

  static constexpr Matrix<kOutputs, kSize> output() {
    Matrix<kOutputs, kSize> result;
    for (int i = 0; i < kOutputs; ++i)
      for (int j = 0; j < kPoints; ++j) result.at[i][j] = power(point(j), i);
    result.at[kOutputs - 1][kPoints] = 1;
    return result;
  }
  static constexpr Matrix<kSize, kTaps> filter() {
    Matrix<kSize, kTaps> result;
    for (int j = 0; j < kPoints; ++j) {
      double product = 1;
      for (int l = 0; l < kPoints; ++l) product *= l == j ? 1 : point(j) - point(l);
      for (int k = 0; k < kTaps; ++k) result.at[j][k] = power(point(j), k) / product;
    }
    result.at[kPoints][kTaps - 1] = 1;
    return result;
  }
  static constexpr Matrix<kSize, kSize> input() {
    Matrix<kSize, kSize> result;
    for (int j = 0; j < kSize; ++j) {
      double* coefficient = result.at[j];
      coefficient[0] = 1;
      for (int l = 0; l < kPoints; ++l) {
        if (l == j) continue;
        for (int k = kPoints; k > 0; --k) coefficient[k] = coefficient[k - 1] - point(l) * coefficient[k];
        coefficient[0] *= -point(l);
      }
    }
    return result;
  }
};

// Where row kRow of a matrix has a coefficient of 1 among columns kFrom, kFrom + 2 (or 1), ...: there its sum starts
// for nothing. Else at its last coefficient other than zero; -1 if there is none.
template <class M>
constexpr int first_term(const M& matrix, int row, int from, int step, double scale) {
  int last = -1;
  for (int k = from; k < M::kColumns; k += step) {
    if (matrix.at[row][k] == scale) return k;
    if (matrix.at[row][k] != 0) last = k;
  }
  return last;
}

// Sum over k = kFrom, kFrom + kStep, ... of kMatrix[kRow][k] / kScale * in[k].
template <auto kMatrix, int kRow, int kFrom, int kStep, double kScale, class V, int kCount>
CNNFAST_INLINE V row_sum(const V (&in)[kCount]) {
  constexpr int kFirst = first_term(kMatrix, kRow, kFrom, kStep, kScale);
  if constexpr (kFirst < 0) {
    return V{};
  } else {
    constexpr double kStart = kMatrix.at[kRow][kFirst] / kScale;
    V sum = in[kFirst];
    if constexpr (kStart != 1) sum *= broadcast(static_cast<float>(kStart));
    unroll<kCount>([&](auto index) CNNFAST_INLINE_LAMBDA {
      constexpr int k = index.value;
      constexpr double kTerm = kMatrix.at[kRow][k] / kScale;
      if constexpr (k >= kFrom && (k - kFrom) % kStep == 0 && k != kFirst && kTerm != 0) {
        sum = kTerm == 1 ? sum + in[k] : sum + broadcast(static_cast<float>(kTerm)) * in[k];
      }
    });
    return sum;
  }
}

// out = kMatrix * in where rows are points (B^T, G, and A): row 0, pairs, infinity.
template <auto kMatrix, class V>
CNNFAST_INLINE void evaluate(const V (&in)[kMatrix.kColumns], V (&out)[kMatrix.kRows]) {
  constexpr int kLast = kMatrix.kRows - 1;
  out[0] = row_sum<kMatrix, 0, 0, 1, 1.0>(in);
  unroll<(kLast - 1) / 2>([&](auto pair) CNNFAST_INLINE_LAMBDA {
    constexpr int j = 1 + 2 * pair.value;
    constexpr int kOdd = (kMatrix.kColumns - 2) / 2 * 2 + 1;  // the last odd column
    constexpr double kScale = kMatrix.at[j][kOdd] == 0 ? kMatrix.at[j][1] : kMatrix.at[j][kOdd];
    const V even = row_sum<kMatrix, j, 0, 2, 1.0>(in), odd = row_sum<kMatrix, j, 1, 2, kScale>(in);
    if constexpr (kScale == 1) {
      out[j] = even + odd;
      out[j + 1] = even - odd;
    } else {
      const V scale = broadcast(static_cast<float>(kScale));
      out[j] = even + scale * odd;
      out[j + 1] = even - scale * odd;
    }
  });
  out[kLast] = row_sum<kMatrix, kLast, 0, 1, 1.0>(in);
}

// out = kMatrix * in where columns are points (A^T, G^T).
template <auto kMatrix, class V>
CNNFAST_INLINE void interpolate(const V (&in)[kMatrix.kColumns], V (&out)[kMatrix.kRows]) {
  // The columns of a pair have equal coefficients in one row and opposite ones in the next.
  constexpr int kLast = kMatrix.kColumns - 1;
  V pairs[kMatrix.kColumns];
  pairs[0] = in[0];
  unroll<(kLast - 1) / 2>([&](auto pair) CNNFAST_INLINE_LAMBDA {
    constexpr int j = 1 + 2 * pair.value;
    pairs[j] = in[j] + in[j + 1];
    pairs[j + 1] = in[j] - in[j + 1];
  });
  pairs[kLast] = in[kLast];
  unroll<kMatrix.kRows>([&](auto row) CNNFAST_INLINE_LAMBDA {
    constexpr auto kPaired = [] {
      auto paired = kMatrix;
      for (int i = 0; i < paired.kRows; ++i)
        for (int j = 1; j < paired.kColumns - 1; j += 2) {
          const bool same = paired.at[i][j] == paired.at[i][j + 1];
          paired.at[i][j + 1] = same ? 0 : paired.at[i][j];
          if (!same) paired.at[i][j] = 0;
        }
      return paired;
    }();
    out[row.value] = row_sum<kPaired, row.value, 0, 1, 1.0>(pairs);
  });
}

// out = kMatrix * in * kMatrix^T by either of the two; load(i, j) gives in's elements, store(i, j, x) takes out's.
template <auto kMatrix, bool kEvaluate, class V, class Load, class Store>
CNNFAST_INLINE void transform_both_ways(const Load& load, const Store& store) {
  constexpr int kIn = kMatrix.kColumns, kOut = kMatrix.kRows;
  const auto apply = [](const V(&in)[kIn], V(&out)[kOut]) CNNFAST_INLINE_LAMBDA {
    if constexpr (kEvaluate) {
      evaluate<kMatrix>(in, out);
    } else {
      interpolate<kMatrix>(in, out);
    }
  };
  V rows[kOut][kIn];
  unroll<kIn>([&](auto j) CNNFAST_INLINE_LAMBDA {
    V in[kIn], out[kOut];
    unroll<kIn>([&](auto i) CNNFAST_INLINE_LAMBDA { in[i.value] = load(i.value, j.value); });
    apply(in, out);
    unroll<kOut>([&](auto i) CNNFAST_INLINE_LAMBDA { rows[i.value][j.value] = out[i.value]; });
  });
  unroll<kOut>([&](auto i) CNNFAST_INLINE_LAMBDA {
    V out[kOut];
    apply(rows[i.value], out);
    unroll<kOut>([&](auto j) CNNFAST_INLINE_LAMBDA { store(i.value, j.value, out[j.value]); });
  });
}

}  // namespace cnnfast::CNNFAST_ISA
