// quantile.go has the order statistics that the reports use.

package main

import (
	"cmp"
	"math"
	"slices"
)

// quantile returns the smallest value that at least the share q of the values
// do not exceed (nearest rank), and the zero value of none.
func quantile[T cmp.Ordered](values []T, q float64) (v T) {
	if len(values) == 0 {
		return v
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
