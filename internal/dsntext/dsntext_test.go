package dsntext_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/livepool/livepool/internal/dsntext"
)

func TestOurParametersAreTakenFromTheDrivers(t *testing.T) {
	for _, test := range []struct {
		dsn    string
		ours   []string
		params string // one that the driver keeps
	}{
		{"u:p@tcp(h:1)/db", nil, ""},
		{"u:p@tcp(h:1)/db?pool_size=3", []string{"pool_size=3"}, ""},
		{"u:p@tcp(h:1)/db?time_zone=x&pool_size=3&pool_recycle=1h", []string{"pool_size=3", "pool_recycle=1h"}, "time_zone"},
		{"u:p/q?pool_size=1@tcp(h:1)/db?pool_size=3", []string{"pool_size=3"}, ""}, // the first is of the password
	} {
		driver, _, ours, err := dsntext.Parse(test.dsn)
		if err != nil || !slices.Equal(ours, test.ours) {
			t.Errorf("%s: %q, %v", test.dsn, ours, err)
			continue
		}
		if _, ok := driver.Params[test.params]; driver.Addr != "h:1" || ok != (test.params != "") {
			t.Errorf("%s: the driver has %+v", test.dsn, driver)
		}
	}
}

// Whatever is wrong with a DSN, and wherever its password ends up for that.
func TestNoErrorHoldsThePassword(t *testing.T) {
	for _, dsn := range []string{
		"u:secret@tcp(h:1", "u:secret", "u:secret@nowhere", "u:secret@tcp(h:1)db?x=y",
		"u:x/secret%40tcp(h:1)?strict=true", "u:secret@tcp(h:1)/db?strict=true",
	} {
		_, _, _, err := dsntext.Parse(dsn)
		if err == nil {
			t.Errorf("%s: no error", dsn)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
	own := errors.New("pool_size=secret")
	if err := dsntext.HidePassword("u:x/pool_size=secret@tcp(h:1)", own); strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	if err := dsntext.HidePassword("u:p@tcp(h:1)/db?pool_size=secret", own); err != own {
		t.Error(err)
	}
}
