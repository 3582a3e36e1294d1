package setting_test

import (
	"regexp"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/setting"
)

type config struct {
	n int
	d time.Duration
	b bool
	f float64
	s string
}

// What each kind of setting reads, refuses, and shows.
func TestKindsOfSettings(t *testing.T) {
	number := setting.Int("n", "N", -1, 10, func(c *config) *int { return &c.n })
	duration := setting.Duration("d", "D", false, func(c *config) *time.Duration { return &c.d })
	positive := setting.Duration("d", "D", true, func(c *config) *time.Duration { return &c.d })
	word := setting.OneOf("b", "B", setting.Bools, func(c *config) *bool { return &c.b })
	share := setting.Share("f", "F", "a part", func(c *config) *float64 { return &c.f })
	text := setting.Text("s", "S", "letters", regexp.MustCompile(`^[a-z]+$`), func(c *config) *string { return &c.s })
	for _, tt := range []struct {
		of    setting.Setting[config]
		value string
		shown string // "" where the value is refused
	}{
		{number, "-1", "-1"}, {number, "10", "10"}, {number, "11", ""}, {number, "1.5", ""}, {number, "", ""},
		{duration, "0", "0s"}, {duration, "1.5", "1.5s"}, {duration, "500ms", "500ms"}, {duration, "-1s", ""}, {duration, "soon", ""},
		{positive, "0", ""}, {positive, "1h", "1h0m0s"},
		{word, "True", "true"}, {word, "off", "false"}, {word, "yes", ""},
		{share, "0.25", "0.25"}, {share, "1.1", ""}, {share, "NaN", ""},
		{text, "abc", `"abc"`}, {text, "a b", ""}, {text, "", ""},
	} {
		var c config
		shown := ""
		if tt.of.Set(&c, tt.value) && tt.of.OK(&c) {
			shown = tt.of.Show(&c)
		}
		if shown != tt.shown {
			t.Errorf("%s=%q is shown as %q, want %q", tt.of.DSN, tt.value, shown, tt.shown)
		}
	}
}
