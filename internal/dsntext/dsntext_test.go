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

// A list of hosts is taken out of the DSN; the driver reads the first. A port that is missing
// is the driver's default.
func TestListOfHosts(t *testing.T) {
	for _, tt := range []struct {
		dsn      string
		network  string
		first    string   // as the driver reads it
		addrs    []string // nil: one host
		password string
	}{
		{"u:p@tcp(a:1)/db", "tcp", "a:1", nil, "p"},
		{"u:p@tcp(a:1,b:2)/db", "tcp", "a:1", []string{"a:1", "b:2"}, "p"},
		{"u:p@tcp(a:1,b:2,c:3)/db?parseTime=true&pool_size=3", "tcp", "a:1", []string{"a:1", "b:2", "c:3"}, "p"},
		{"u:p@(a:1,b:2)/db", "tcp", "a:1", []string{"a:1", "b:2"}, "p"},
		{"tcp(a:1,b:2)/", "tcp", "a:1", []string{"a:1", "b:2"}, ""},
		{"u:p@tcp(a,b)/db", "tcp", "a:3306", []string{"a:3306", "b:3306"}, "p"},
		{"u:p@tcp(a:1,b)/db", "tcp", "a:1", []string{"a:1", "b:3306"}, "p"},
		{"u:p@tcp(a:3306,a:3307)/db", "tcp", "a:3306", []string{"a:3306", "a:3307"}, "p"},
		{"u:p@tcp(10.0.0.1,10.0.0.2:1)/db", "tcp", "10.0.0.1:3306", []string{"10.0.0.1:3306", "10.0.0.2:1"}, "p"},
		{"u:p@tcp([::1]:1,[fe80::1]:2)/db", "tcp", "[::1]:1", []string{"[::1]:1", "[fe80::1]:2"}, "p"},
		{"u:p@tcp(a,[::1])/db", "tcp", "a:3306", []string{"a:3306", "[::1]:3306"}, "p"},
		{"u:p@tcp4(a:1,b:2)/db", "tcp4", "a:1", []string{"a:1", "b:2"}, "p"},
		{"u:p@tcp6([::1]:1,[::2]:2)/db", "tcp6", "[::1]:1", []string{"[::1]:1", "[::2]:2"}, "p"},
		{"u:p@unix(/a)/db", "unix", "/a", nil, "p"},
		{"u:p@unix(/a/x.sock,/b/y.sock)/db", "unix", "/a/x.sock", []string{"/a/x.sock", "/b/y.sock"}, "p"},
		{"u:p@unix(/a,1/x.sock)/db", "unix", "/a,1/x.sock", nil, "p"},
		{"u:p@unix(/a,1,/b,2)/db", "unix", "/a,1", []string{"/a,1", "/b,2"}, "p"},
		{"u:p,(q@tcp(a)/db", "tcp", "a:3306", nil, "p,(q"},
		{"u:p,(q@tcp(a,b)/db", "tcp", "a:3306", []string{"a:3306", "b:3306"}, "p,(q"},
		{"u:a,b@tcp(h:1)/db", "tcp", "h:1", nil, "a,b"},
		{"u:tcp(x,y)@tcp(h:1)/db", "tcp", "h:1", nil, "tcp(x,y)"},
		{"u:tcp(x,y)@z/@tcp(h:1,i:2)/db", "tcp", "h:1", []string{"h:1", "i:2"}, "tcp(x,y)@z/"},
		{"u:p@tcp(h:1)/d,b?time_zone=(a,b)", "tcp", "h:1", nil, "p"},
		{"u:p@ssh(a,b)/db", "ssh", "a,b", nil, "p"}, // a network that was registered; what its addresses are is its own
		{"u:p@cloudsql(x:y:z)/db", "cloudsql", "x:y:z", nil, "p"},
	} {
		driver, addrs, _, err := dsntext.Parse(tt.dsn)
		if err != nil {
			t.Errorf("%s: %v", tt.dsn, err)
			continue
		}
		if driver.Net != tt.network || driver.Addr != tt.first || driver.Passwd != tt.password || !slices.Equal(addrs, tt.addrs) {
			t.Errorf("%s: %q, of which the driver has %s(%s), password %q; want %q, %s(%s), %q",
				tt.dsn, addrs, driver.Net, driver.Addr, driver.Passwd, tt.addrs, tt.network, tt.first, tt.password)
		}
	}
}

// What is no list of hosts is refused, by an error that says which of them is wrong, and holds
// none of the password.
func TestBadListOfHosts(t *testing.T) {
	for _, tt := range []struct{ addrs, says string }{
		{"tcp(a:1,)", "host 2 of 2"},
		{"tcp(,b:1)", "host 1 of 2"},
		{"tcp(a:1,,b:1)", "host 2 of 3"},
		{"tcp(a:1,:3306)", "host 2 of 2"},
		{"tcp(a:1,b:)", "host 2 of 2"},
		{"tcp(a:1,::1)", "host 2 of 2"},
		{"tcp(a:1,b:2:3)", "host 2 of 2"},
		{"tcp(a:1,b:2,a:1)", "host 3 of 3"},
		{"tcp(a,a:3306)", "host 2 of 2"},
		{"tcp(db:3306,DB)", "host 2 of 2"},
		{"tcp(a:1, b:2)", "host 2 of 2"},
		{"tcp(a:1,b:abc)", "host 2 of 2"},
		{"tcp(a:1,b:0)", "host 2 of 2"},
		{"tcp(a:1,b:65536)", "host 2 of 2"},
		{"tcp(a:1,b/c)", "host 2 of 2"},
		{"unix(/a,/b,/a)", "host 3 of 3"},
	} {
		_, addrs, _, err := dsntext.Parse("u:secret@" + tt.addrs + "/db")
		switch {
		case err == nil:
			t.Errorf("%s: read as %q", tt.addrs, addrs)
		case !strings.HasPrefix(err.Error(), "livepool: ") || !strings.Contains(err.Error(), tt.says):
			t.Errorf("%s: %v, want %s in it", tt.addrs, err, tt.says)
		}
	}
	for _, dsn := range []string{
		"u:secret@tcp(a:1,b:secret:2)/db", "u:a@secret(a:1,b:2)/db", "u:x/tcp(secret,b)@tcp(h:1,i:2)", "u:x(secret,y@tcp(a:1,b:1/db",
		"u:p@tcp(a:1,secret@b:1)/db", "u:tcp(h,secret)/db?x=y", "u:tcp(secret,secret)/db", "u:p@tcp(a,b)/db@secret", "u:secret@tcp(a:1,b:2)",
	} {
		if _, _, _, err := dsntext.Parse(dsn); err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}

// Config.Addrs are read in the same way; of another network than TCP nothing is known.
func TestHostsOfANetwork(t *testing.T) {
	for _, tt := range []struct {
		network     string
		addrs, want []string // nil: an error
	}{
		{"", []string{"a", "b:2"}, []string{"a:3306", "b:2"}},
		{"tcp", []string{"a"}, []string{"a:3306"}},
		{"tcp", []string{"[::1]", "[::1]:1"}, []string{"[::1]:3306", "[::1]:1"}},
		{"unix", []string{"/a", "/b"}, []string{"/a", "/b"}},
		{"ssh", []string{"a", "b"}, []string{"a", "b"}},
		{"ssh", []string{"a", ""}, nil},
		{"ssh", []string{"a", "a"}, nil},
		{"tcp", []string{"a", ""}, nil},
	} {
		given := slices.Clone(tt.addrs)
		got, err := dsntext.Hosts(tt.network, given)
		if !slices.Equal(got, tt.want) || (err != nil) != (tt.want == nil) {
			t.Errorf("%s%q: %q, %v, want %q", tt.network, tt.addrs, got, err, tt.want)
		}
		if !slices.Equal(given, tt.addrs) {
			t.Errorf("%s%q: the caller's list was changed to %q", tt.network, tt.addrs, given)
		}
	}
}

// A password may hold any byte, a line break too; the list behind it is one all the same.
func TestLineBreakInThePasswordBeforeAList(t *testing.T) {
	_, addrs, _, err := dsntext.Parse("u:two\nlines@tcp(a:1,b:2)/db")
	if want := []string{"a:1", "b:2"}; err != nil || !slices.Equal(addrs, want) {
		t.Errorf("%q, %v, want %q", addrs, err, want)
	}
}

// A network that was registered is not TCP because its name begins so: what its addresses are
// is its own.
func TestHostsOfANetworkThatIsCalledLikeTCP(t *testing.T) {
	given := []string{"prod-1", "prod-2"}
	if got, err := dsntext.Hosts("tcp-over-ssh", given); err != nil || !slices.Equal(got, given) {
		t.Errorf("%q, %v, want %q", got, err, given)
	}
}
