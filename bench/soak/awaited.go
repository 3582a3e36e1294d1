// awaited.go names what is known not to be kept yet.

package soak

import "slices"

var (
	// awaitedKinds strike only where -only names them.
	awaitedKinds = []string{}
	// awaitedRules are told of, and fail no run.
	awaitedRules = []string{rulePlainWaits, ruleThink, ruleTooLarge}
)

func awaited(v violation) bool { return slices.Contains(awaitedRules, v.Rule) }
