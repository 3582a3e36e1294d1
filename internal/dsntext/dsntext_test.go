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

// A list of hosts is taken from the driver, which gets the first.
func TestListsOfHosts(t *testing.T) {
	for _, test := range []struct {
		dsn   string
		addrs []string // nil: one host
		first string   // the driver's
	}{
		{"u:p@tcp(db1:3306,db2:3307)/shop", []string{"db1:3306", "db2:3307"}, "db1:3306"},
		{"u:p@tcp(db1,db2,db3)/shop", []string{"db1:3306", "db2:3306", "db3:3306"}, "db1:3306"},
		{"u:p@tcp([::1]:3307,[fe80::2])/", []string{"[::1]:3307", "[fe80::2]:3306"}, "[::1]:3307"},
		{"u:p@(db1,db2)/shop", []string{"db1:3306", "db2:3306"}, "db1:3306"},
		{"tcp(db1,db2)/shop", []string{"db1:3306", "db2:3306"}, "db1:3306"},
		{"u:p@unix(/run/a.sock,/run/b.sock)/shop", []string{"/run/a.sock", "/run/b.sock"}, "/run/a.sock"},
		{"u:p@unix(/run/a,b.sock)/shop", nil, "/run/a,b.sock"}, // the name of one
		{"u:p,(q@tcp(db1)/shop", nil, "db1:3306"},
		{"u:p,(q@tcp(db1,db2)/shop", []string{"db1:3306", "db2:3306"}, "db1:3306"},
		{"u:p@cloudsql(a,b)/shop", nil, "a,b"}, // a network of the user's, whose addresses are its own
	} {
		driver, addrs, _, err := dsntext.Parse(test.dsn)
		if err != nil || !slices.Equal(addrs, test.addrs) || driver.Addr != test.first {
			t.Errorf("%s: %q, %+v, %v", test.dsn, addrs, driver, err)
		}
	}
}

// What is wrong with a list is said by the place in it: the rest may be of the password.
func TestListsOfHostsThatCannotBeRead(t *testing.T) {
	for _, dsn := range []string{
		"u:secret@tcp(db1,)/shop", "u:secret@tcp(,db2)/shop", "u:secret@tcp(db1,db2,db1:3306)/shop",
		"u:secret@tcp(db1,:3306)/shop", "u:secret@tcp(db1,::1)/shop", "u:secret@tcp(db1,db2:)/shop",
	} {
		_, _, _, err := dsntext.Parse(dsn)
		if err == nil || !strings.Contains(err.Error(), "host ") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}
