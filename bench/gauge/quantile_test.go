package gauge

import "testing"

func TestQuantile(t *testing.T) {
	for _, tt := range []struct {
		values []int
		q      float64
		want   int
	}{
		{nil, 0.5, 0},
		{[]int{7}, 0, 7},
		{[]int{7}, 0.99, 7},
		{[]int{3, 1, 2}, 0.5, 2},
		{[]int{4, 3, 2, 1}, 0.5, 2},
		{[]int{4, 3, 2, 1}, 0.75, 3},
		{[]int{4, 3, 2, 1}, 1, 4},
	} {
		if got := Quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("Quantile(%v, %v) = %d, want %d", tt.values, tt.q, got, tt.want)
		}
	}
	values := []int{2, 1}
	if Quantile(values, 1); values[0] != 2 {
		t.Error("Quantile sorted its argument")
	}
}
