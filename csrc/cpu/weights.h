// dl/dS of the kept pairs of a tile, times the incoming gradients of their rows.
#pragma once

#include "similarity.h"

namespace msk::MSK_ISA {

// Weights of one kind of pair in one tile: of value = S with scale = beta for negatives, of
// value = -S with scale = alpha and the base's sign turned for positives. A side's factor is
// dloss exp(most - offset), so that both sides share one exponential when their offsets lie close
// together. Exponents are scale (value - base), rounded as in the log-sum-exps: they cancel.
template <typename T>
struct KindWeights {
  T scale, base, most;
  bool shared;
  const T *row_threshold, *column_threshold, *row_offset, *column_offset;
  const T *row_factor, *column_factor;

  KindWeights(T scale, T base, const T* const row[2], const T* row_dloss, int rows,
              const T* const column[2], const T* column_dloss, int columns, T* row_room,
              T* column_room)
      : scale(scale),
        base(base),
        most(T(0)),
        row_threshold(row[0]),
        column_threshold(column[0]),
        row_offset(row[1]),
        column_offset(column[1]) {
    T least = kInfinity<T>;
    const auto span = [&](const T* offset, int count) {
      for (int i = 0; i < count; ++i)
        if (offset[i] < kInfinity<T>) {
          least = offset[i] < least ? offset[i] : least;
          most = offset[i] > most ? offset[i] : most;
        }
    };
    span(row_offset, rows);
    span(column_offset, columns);
    shared = !(most - least > kSharedSpread<T>);
    row_factor = shared ? scaled(most, row_offset, row_dloss, rows, row_room) : row_dloss;
    column_factor =
        shared ? scaled(most, column_offset, column_dloss, columns, column_room) : column_dloss;
  }

  Vec<T> operator()(Vec<T> value, Vec<T> row_threshold, Vec<T> row_offset, Vec<T> row_factor,
                    Vec<T> column_threshold, Vec<T> column_offset, Vec<T> column_factor,
                    Mask<T>& kept) const {
    const Mask<T> by_row = value > row_threshold, by_column = value > column_threshold;
    kept = by_row | by_column;
    const Vec<T> z = scale * (value - broadcast(base));
    Vec<T> row_e, column_e;
    if (shared) {
      row_e = column_e = exp<T>(z - broadcast(most));
    } else {
      row_e = exp<T>(z - row_offset);
      column_e = exp<T>(z - column_offset);
    }
    const Vec<T> row_weight = row_e * row_factor, column_weight = column_e * column_factor;
    return (by_row ? row_weight : Vec<T>{}) + (by_column ? column_weight : Vec<T>{});
  }

 private:
  static const T* scaled(T reference, const T* offset, const T* dloss, int count, T* room) {
    for (int i = 0; i < count; i += kLanes<T>)
      store(room + i, load(dloss + i) * exp<T>(reference - load(offset + i)));
    return room;
  }
};

template <typename T>
struct TileWeights {
  KindWeights<T> negative, positive;

  TileWeights(const Side<T>& rows, const Side<T>& columns, Tile t, const MultiSimilarity<T>& loss,
              const Scratch<T>& s)
      : negative(kind(rows, columns, t, loss.beta, loss.base, true, s)),
        positive(kind(rows, columns, t, loss.alpha, -loss.base, false, s)) {}

  // Of a whole tile; `out` may be the similarities themselves. Returns the number of kept pairs.
  std::int32_t weigh(const TileView<T>& tile, bool positives, T* out) const {
    std::int32_t kept = 0;
    for (int r = 0; r < tile.rows; ++r)
      for (int v = 0; v < tile.vectors(); ++v) {
        const int c = v * kLanes<T>;
        const std::int64_t at = std::int64_t(r) * tile.stride + c;
        const Vec<T> s = load(tile.similarity + at);
        const PairMask<T> pairs = tile.pairs(r, v, s);
        Mask<T> pushed;
        Vec<T> weight = one(negative, s, r, c, pushed);
        pushed &= pairs.negative;
        weight = pushed ? weight : Vec<T>{};
        if (positives) {
          Mask<T> pulled;
          const Vec<T> pull = one(positive, -s, r, c, pulled);
          pulled &= pairs.positive;
          weight = pulled ? -pull : weight;
          pushed |= pulled;
        }
        store(out + at, weight);
        kept += __builtin_popcount(bits<T>(pushed));
      }
    return kept;
  }

  // Of listed negatives, in place of their similarities.
  void weigh(Pair<T>* pairs, std::int32_t count) const {
    for (std::int32_t k = 0; k < count; k += kLanes<T>) {
      const int filled = count - k < kLanes<T> ? count - k : kLanes<T>;
      T value[kLanes<T>], row[3][kLanes<T>], column[3][kLanes<T>];
      for (int i = 0; i < kLanes<T>; ++i) {
        const Pair<T>& p = pairs[k + (i < filled ? i : 0)];
        value[i] = p.value;
        row[0][i] = negative.row_threshold[p.row];
        row[1][i] = negative.row_offset[p.row];
        row[2][i] = negative.row_factor[p.row];
        column[0][i] = negative.column_threshold[p.column];
        column[1][i] = negative.column_offset[p.column];
        column[2][i] = negative.column_factor[p.column];
      }
      Mask<T> kept;
      const Vec<T> weight = negative(load(value), load(row[0]), load(row[1]), load(row[2]),
                                     load(column[0]), load(column[1]), load(column[2]), kept);
      for (int i = 0; i < filled; ++i) pairs[k + i].value = weight[i];
    }
  }

 private:
  static KindWeights<T> kind(const Side<T>& rows, const Side<T>& columns, Tile t, T scale, T base,
                             bool negative, const Scratch<T>& s) {
    const std::int64_t i = rows.first(t.row), j = columns.first(t.column);
    const auto arrays = [&](const Side<T>& side, std::int64_t at, const T*(&out)[2]) {
      out[0] = (negative ? side.neg_threshold : side.pos_threshold) + at;
      out[1] = (negative ? side.neg_offset : side.pos_offset) + at;
    };
    const T *row[2], *column[2];
    arrays(rows, i, row);
    arrays(columns, j, column);
    const int room = negative ? 0 : 2;
    return {scale,
            base,
            row,
            rows.dloss + i,
            rows.axis.block,
            column,
            columns.dloss + j,
            columns.axis.block,
            s.small(room),
            s.small(room + 1)};
  }

  static Vec<T> one(const KindWeights<T>& k, Vec<T> value, int r, int c, Mask<T>& kept) {
    return k(value, broadcast(k.row_threshold[r]), broadcast(k.row_offset[r]),
             broadcast(k.row_factor[r]), load(k.column_threshold + c), load(k.column_offset + c),
             load(k.column_factor + c), kept);
  }
};

// Lists the weights of a tile that are not 0, row by row; returns their number.
template <typename T>
std::int32_t list_weights(const T* weights, int stride, int rows, int vectors, Pair<T>* out) {
  std::int32_t count = 0;
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < vectors; ++v) {
      const int c = v * kLanes<T>;
      const T* at = weights + std::int64_t(r) * stride + c;
      for (std::uint32_t lanes = bits<T>(load(at) != T(0)); lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        out[count++] = {at[lane], std::uint8_t(r), std::uint8_t(c + lane), 0};
      }
    }
  return count;
}

template <typename T>
void sort_by_column(Pair<T>* pairs, std::int32_t count, int columns) {
  std::uint16_t place[257] = {};
  for (std::int32_t k = 0; k < count; ++k) ++place[pairs[k].column + 1];
  for (int c = 1; c <= columns; ++c) place[c] += place[c - 1];
  for (std::int32_t k = 0; k < count; ++k) pairs[place[pairs[k].column]++].by_column = k;
}

}  // namespace msk::MSK_ISA
