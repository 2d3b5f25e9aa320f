// Which pairs an anchor keeps, as bounds on S that follow from its hardest pairs.
#pragma once

#include <cmath>
#include <limits>

#include "host_device.h"
#include "infinity.h"
#include "rules.h"

namespace msk {

// Strict bounds, all by S. Every switch names every rule and none has a default: of a new one the
// compiler says where it is missing. A rule that nobody knows has a bound that no pair passes.
template <typename T>
struct Mining {
  MiningRule rule;
  T a, b;  // options of the rule, in the order of its Python class

  static constexpr T kTiny = std::numeric_limits<T>::min();

  // The negatives' bounds hang on the so many hardest of them, which costs a scan of its own. Where
  // they do, the hardest negative of a row is the last of these.
  MSK_HOST_DEVICE int hardest_negatives() const {
    switch (rule) {
      case MiningRule::top_k:
        return int(a);
      case MiningRule::hardest:
        return 1;
      case MiningRule::none:
      case MiningRule::multi_similarity:
      case MiningRule::semi_hard:
      case MiningRule::threshold:
      case MiningRule::count:
        break;
    }
    return 0;
  }
  // Of negatives harder than all that are kept nothing but their hardest is ever asked.
  MSK_HOST_DEVICE bool bounds_negatives_above() const {
    switch (rule) {
      case MiningRule::semi_hard:
        return true;
      case MiningRule::none:
      case MiningRule::multi_similarity:
      case MiningRule::hardest:
      case MiningRule::threshold:
      case MiningRule::top_k:
      case MiningRule::count:
        break;
    }
    return false;
  }
  MSK_HOST_DEVICE bool positives_need_negatives() const {
    switch (rule) {
      case MiningRule::multi_similarity:
        return true;
      case MiningRule::none:
      case MiningRule::hardest:
      case MiningRule::semi_hard:
      case MiningRule::threshold:
      case MiningRule::top_k:
      case MiningRule::count:
        break;
    }
    return false;
  }
  // A number under x, or over it, that keeps what ties with x. Where the processor takes denormal
  // numbers for 0, the neighbours of 0 would not.
  MSK_HOST_DEVICE static T beside(T x, T direction) {
    if (std::fabs(x) <= kTiny) return direction < T(0) ? -2 * kTiny : 2 * kTiny;
    return std::nextafter(x, direction);
  }
  MSK_HOST_DEVICE T negative_above(T hardest_positive, T hardest_negative) const {
    switch (rule) {
      case MiningRule::multi_similarity:
      case MiningRule::semi_hard:
        return hardest_positive - a;
      case MiningRule::hardest:
      case MiningRule::top_k:
        return beside(hardest_negative, -kInfinity<T>);
      case MiningRule::threshold:
        return b;
      case MiningRule::none:
        return -kInfinity<T>;
      case MiningRule::count:
        break;
    }
    return kNaN<T>;
  }
  MSK_HOST_DEVICE T negative_below(T hardest_positive) const {
    switch (rule) {
      case MiningRule::semi_hard:
        return hardest_positive;
      case MiningRule::none:
      case MiningRule::multi_similarity:
      case MiningRule::hardest:
      case MiningRule::threshold:
      case MiningRule::top_k:
        return kInfinity<T>;
      case MiningRule::count:
        break;
    }
    return kNaN<T>;
  }
  MSK_HOST_DEVICE T positive_below(T hardest_positive, T hardest_negative) const {
    switch (rule) {
      case MiningRule::multi_similarity:
        return hardest_negative + a;
      case MiningRule::hardest:
        return beside(hardest_positive, kInfinity<T>);
      case MiningRule::threshold:
        return a;
      case MiningRule::none:
      case MiningRule::semi_hard:
      case MiningRule::top_k:
        return kInfinity<T>;
      case MiningRule::count:
        break;
    }
    return kNaN<T>;
  }
};

}  // namespace msk
