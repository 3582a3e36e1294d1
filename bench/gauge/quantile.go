// Package gauge is what the reports of the benchmark and of the soak have in
// common: order statistics, and a line that tells how far a run has come.
package gauge

import (
	"cmp"
	"math"
	"slices"
)

// Quantile returns the smallest value that at least the share q of the values
// do not exceed (nearest rank), and the zero value of none.
func Quantile[T cmp.Ordered](values []T, q float64) (v T) {
	if len(values) == 0 {
		return v
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
