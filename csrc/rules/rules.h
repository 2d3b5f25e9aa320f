// The codes of rules and their options, as a call gives them.
#pragma once

namespace msk {

// In the order of ms_kernels/rules/spec.py; NPair is NTXent.
enum class WeightingRule : int {
  multi_similarity,
  contrastive,
  binomial_deviance,
  bin_lifted,
  lifted_structure,
  nt_xent,
  sup_con,
  nca,
  circle,
  triplet,
  decoupled_contrastive,
  sig_lip,
  count
};

// In the order of ms_kernels/rules/spec.py.
enum class MiningRule : int { none, multi_similarity, hardest, semi_hard, threshold, top_k, count };

// Options of each rule in the order of its Python class.
struct Rules {
  WeightingRule weighting;
  double weighting_options[3];
  MiningRule mining;
  double mining_options[2];

  // The MS loss as its paper has it, or without mining: some kernels have shortcuts for it.
  bool is_multi_similarity() const {
    return weighting == WeightingRule::multi_similarity &&
           (mining == MiningRule::multi_similarity || mining == MiningRule::none);
  }
};

}  // namespace msk
