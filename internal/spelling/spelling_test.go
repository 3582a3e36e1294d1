package spelling_test

import (
	"testing"

	"github.com/livepool/livepool/internal/spelling"
)

func TestClosest(t *testing.T) {
	t.Parallel()
	params := []string{"pool_size", "pool_recycle", "pool_min_idle"}
	for name, want := range map[string]string{
		"pool_size":       "pool_size",
		"PoolSize":        "pool_size",
		"pool-size":       "pool_size",
		"size":            "pool_size",
		"pool%5Fsize":     "pool_size",
		"pool_sise":       "pool_size",
		"pool_siz":        "pool_size",
		"pool_ssize":      "pool_size",
		"pool_szie":       "",
		"sise":            "",
		"connMaxLifetime": "pool_recycle",
		"minimumIdle":     "pool_min_idle",
		"charset":         "",
	} {
		if got := spelling.Closest(name, params); got != want {
			t.Errorf("Closest(%q) = %q, want %q", name, got, want)
		}
	}
}
