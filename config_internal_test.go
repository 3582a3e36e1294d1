package livepool

import (
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/dsntext"
)

const wordBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$"

// documented is what docs/settings.md says of each parameter: its name, and what it may be.
var documented = map[string]func(c *Config) bool{
	"pool_size":            func(c *Config) bool { return c.PoolSize >= 0 && c.PoolSize <= 100000 },
	"pool_max_lag":         func(c *Config) bool { return c.MaxLag >= 0 },
	"pool_target":          func(c *Config) bool { return c.Target >= TargetPrimary && c.Target <= TargetAny },
	"pool_max_overflow":    func(c *Config) bool { return c.MaxOverflow >= -1 && c.MaxOverflow <= 100000 },
	"pool_min_idle":        func(c *Config) bool { return c.MinIdle >= 0 && c.MinIdle <= c.PoolSize },
	"pool_idle_timeout":    func(c *Config) bool { return c.IdleTimeout >= 0 },
	"pool_recycle":         func(c *Config) bool { return c.Recycle >= 0 },
	"pool_recycle_jitter":  func(c *Config) bool { return c.RecycleJitter >= 0 && c.RecycleJitter <= 1 },
	"pool_pre_ping":        func(c *Config) bool { return c.PrePing >= PrePingOff && c.PrePing <= PrePingAlways },
	"pool_ping_after":      func(c *Config) bool { return c.PingAfter >= 0 },
	"pool_ping_timeout":    func(c *Config) bool { return c.PingTimeout > 0 },
	"pool_keepalive":       func(c *Config) bool { return c.KeepAlive >= 0 },
	"pool_connect_timeout": func(c *Config) bool { return c.ConnectTimeout > 0 },
	"pool_commit_timeout":  func(c *Config) bool { return c.CommitTimeout > 0 },
	"pool_timeout":         func(c *Config) bool { return c.PoolTimeout >= 0 },
	"pool_stall_after":     func(c *Config) bool { return c.StallAfter >= 0 },
	"pool_kill_abandoned":  func(*Config) bool { return true },
	"pool_beacon":          func(c *Config) bool { return c.Beacon >= BeaconOff && c.Beacon <= BeaconOn },
	"pool_hold_limit":      func(c *Config) bool { return c.HoldLimit >= 0 },
	"pool_outage_wait":     func(c *Config) bool { return c.OutageWait >= 0 },
	"pool_connect_limit":   func(c *Config) bool { return c.ConnectLimit >= 1 },
	"pool_begin":           func(*Config) bool { return true },
	"pool_strict":          func(*Config) bool { return true },
	"pool_leak_after":      func(c *Config) bool { return c.LeakAfter >= 0 },
	"pool_max_attempts":    func(c *Config) bool { return c.MaxAttempts >= 1 },
	"pool_max_elapsed":     func(c *Config) bool { return c.MaxElapsed >= 0 },
	"pool_commit_table": func(c *Config) bool {
		return c.CommitTable != "" && strings.Trim(c.CommitTable, wordBytes+".") == "" && strings.Count(c.CommitTable, ".") <= 1
	},
}

func TestEverySettingIsFuzzed(t *testing.T) {
	for _, p := range params {
		if documented[p.DSN] == nil {
			t.Errorf("%s is not among what is documented", p.DSN)
		}
	}
}

// durations are those of the settings that are times.
func durations(c *Config) map[string]time.Duration {
	return map[string]time.Duration{
		"pool_idle_timeout": c.IdleTimeout, "pool_recycle": c.Recycle, "pool_ping_after": c.PingAfter,
		"pool_ping_timeout": c.PingTimeout, "pool_keepalive": c.KeepAlive, "pool_connect_timeout": c.ConnectTimeout,
		"pool_commit_timeout": c.CommitTimeout, "pool_timeout": c.PoolTimeout, "pool_stall_after": c.StallAfter,
		"pool_max_lag": c.MaxLag, "pool_hold_limit": c.HoldLimit, "pool_outage_wait": c.OutageWait, "pool_leak_after": c.LeakAfter, "pool_max_elapsed": c.MaxElapsed,
	}
}

// driverReads is the driver's reading of the whole DSN, which takes a pool_*
// parameter for a variable to be SET.
func driverReads(dsn string) (cfg *mysql.Config, ours map[string]string, err error) {
	cfg, err = dsntext.SafeParse(dsn)
	if err != nil {
		return nil, nil, err
	}
	ours = map[string]string{}
	for name, value := range cfg.Params {
		if strings.HasPrefix(name, "pool_") {
			ours[name] = value
			delete(cfg.Params, name)
		}
	}
	if len(cfg.Params) == 0 {
		cfg.Params = nil
	}
	return cfg, ours, nil
}

// forDriver is a DSN as the driver can read it, which knows no lists: with the first host
// alone. It looks whether the driver would dial each of the others, were it alone, and
// whether all are there.
func forDriver(t *testing.T, dsn string, cfg *Config) string {
	if cfg.Addrs == nil {
		return dsn
	}
	slash := strings.LastIndexByte(dsn, '/')
	before, list, _ := cutLast(strings.TrimSuffix(dsn[:slash], ")"), "(")
	separator := ","
	if cfg.MySQL.Net == "unix" {
		separator = ",/"
	}
	if n := strings.Count(list, separator) + 1; n != len(cfg.Addrs) || n < 2 {
		t.Errorf("%q: %d hosts are read as %q", dsn, n, cfg.Addrs)
	}
	alone := func(addr string) string { return before + "(" + addr + ")" + dsn[slash:] }
	for _, addr := range cfg.Addrs {
		if theirs, err := dsntext.SafeParse(alone(addr)); err != nil || theirs.Addr != addr {
			t.Errorf("%q: the driver does not dial %q: %v", dsn, addr, err)
		}
	}
	return alone(cfg.Addrs[0])
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

func sameDriverSettings(a, b *mysql.Config) bool {
	a, b = a.Clone(), b.Clone()
	if a.Loc.String() != b.Loc.String() { // each load makes a new one
		return false
	}
	a.Loc, b.Loc = nil, nil
	return a.FormatDSN() == b.FormatDSN() && reflect.DeepEqual(a, b)
}

// dsnSeeds are DSNs that were, or may be, read wrongly.
var dsnSeeds = map[string]struct {
	user, before, after, rest string
	escaped                   bool
}{
	"all of ours":                            {"app", "", "", "tcp(db:3306)/shop?pool_size=5&pool_max_overflow=-1&pool_min_idle=2&pool_idle_timeout=0&pool_recycle=3600&pool_recycle_jitter=0.5&pool_pre_ping=always&pool_ping_after=2m&pool_ping_timeout=250ms&pool_keepalive=0&pool_connect_timeout=2&pool_commit_timeout=3s&pool_timeout=1.5&pool_stall_after=10s&pool_kill_abandoned=false&pool_beacon=on&pool_leak_after=1h30m&pool_max_attempts=1&pool_max_elapsed=1m&pool_commit_table=ops.commits", false},
	"all of the drivers":                     {"app", "", "", "tcp([fe80::1]:3307)/a%2Fb?allowNativePasswords=false&charset=utf8mb4,latin1&collation=utf8mb4_bin&loc=Local&multiStatements=true&interpolateParams=true&readTimeout=30s&writeTimeout=30s&timeout=5s&tls=skip-verify&maxAllowedPacket=0&connectionAttributes=a%3Ab&compress=true&time_zone=%27%2B00%3A00%27&pool_size=3", false},
	"at in the password":                     {"app", "p@tcp(", "@", "tcp(db:3306)/shop", false},
	"bracket in the password":                {"app", "p(", ")", "tcp(db:3306)/shop?pool_size=x", false},
	"escaped at":                             {"app@tcp(db", "p)/x?parseTime=", "", "tcp", true},
	"escaped value":                          {"app", "", "", "tcp(db:3306)/shop?pool_size=%33&pool_recycle=1%68", false},
	"network without address":                {"app", "", "", "tcp/shop?pool_size=0&pool_max_overflow=1", false},
	"no host":                                {"root", "", "", "/", false},
	"hosts":                                  {"app", "", "", "tcp(db1:3306,db2,[::1]:3307)/shop?pool_target=replica&pool_max_lag=5s&tls=true", false},
	"hosts in the password":                  {"app", "@tcp(a,b)/", "", "tcp(db1,db2)/shop", false},
	"hosts by sockets":                       {"app", "", "", "unix(/run/a,1.sock,/run/b.sock)/shop?pool_target=any", false},
	"hosts of no network":                    {"app", "", "", "(db1,db2)/", false},
	"hosts of a network that was registered": {"app", "", "", "ssh(db1,db2)/shop", false},
	"no name":                                {"0", "", "", "/?=2", false},
	"no value":                               {"app", "", "", "tcp(db:3306)/shop?pool_size&parseTime", false},
	"overflowing duration":                   {"app", "", "", "tcp(db:3306)/shop?pool_recycle=9223372036.854775807&pool_keepalive=9223372037", false},
	"readme":                                 {"app", "", "", "tcp(db:3306)/shop?parseTime=true&pool_size=20&pool_recycle=30m", false},
	"slash in the password":                  {"app", "a/b", "c/d?e", "tcp(db:3306)/shop?pool_size=3", false},
	"slash in the password and none before the database": {"app", "p/x?parseTime=", "", "tcp(db:3306)", false},
	"socket":            {"root", "", "", "unix(/run/mysqld/mysqld.sock)/?pool_size=3", false},
	"twice":             {"app", "", "", "tcp(db:3306)/shop?pool_size=3&pool_size=4", false},
	"unknown parameter": {"app", "", "", "tcp(db:3306)/shop?pool_sise=3", false},
}

// FuzzParseDSN puts a known password between before and after, and @ or its
// escape behind it.
func FuzzParseDSN(f *testing.F) {
	for _, seed := range dsnSeeds {
		f.Add(seed.user, seed.before, seed.after, seed.rest, seed.escaped)
	}
	for _, params := range []string{
		"", "?parseTime=true&pool_size=20&pool_recycle=30m", "?pool_recycle=1.5&pool_keepalive=0&time_zone=%27%2B00%3A00%27",
		"?pool_pre_ping=always&pool_beacon=on&pool_kill_abandoned=off", "?pool_commit_table=ops.commits&pool_recycle_jitter=1e-1",
		"?pool_sise=3", "?pool_size", "?pool_size=1&pool_size=2", "?pool_min_idle=11", "?strict=true", "?tls=preferred&loc=Local",
	} {
		f.Add("app", "", "", "tcp(db.example:3306)/shop"+params, false)
		f.Add("app", "", "", "tcp(db1.example,db2.example:3307)/shop"+params, false)
	}
	for _, rest := range []string{"tcp(db:3306)", "tcp(db:3306", "tcp(db1,db2)", "tcp(db1,", "nowhere/shop", "unix(/run/mysqld.sock)/", "tcp([::1]:3306)/a%2Fb"} {
		f.Add("app", "p/x?parseTime=", "%zz", rest, false)
		f.Add("app", "p/x?pool_size=", "", rest, true)
	}
	f.Add("app@tcp(db", "p)/x?parseTime=", "", "tcp", true)
	f.Fuzz(func(t *testing.T, user, before, after, rest string, escaped bool) {
		const secret = "s3cretW0rd"
		if len(user)+len(before)+len(after)+len(rest) > 1000 || strings.Contains(user+before+after+rest, secret) {
			return
		}
		at := "@"
		if escaped {
			at = "%40"
		}
		dsn := user + ":" + before + secret + after + at + rest
		cfg, err := ParseDSN(dsn)
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%q: the error holds the password: %v", dsn, err)
			}
			if !strings.HasPrefix(err.Error(), "livepool: ") || cfg != nil {
				t.Errorf("%q: %v, %v", dsn, cfg, err)
			}
			return
		}

		// The driver takes it too, and means the same by the rest of it.
		theirs, ours, err := driverReads(forDriver(t, dsn, cfg))
		if err != nil {
			t.Fatalf("%q is accepted, and not by the driver: %v", dsn, err)
		}
		if !sameDriverSettings(cfg.MySQL, theirs) {
			t.Errorf("%q: the driver gets %+v, want %+v", dsn, cfg.MySQL, theirs)
		}

		// Every parameter of livepool's is known, and says what was meant.
		for name, value := range ours {
			if documented[name] == nil {
				t.Errorf("%q: %s is accepted", dsn, name)
			}
			if got, ok := durations(cfg)[name]; ok {
				d, err := time.ParseDuration(value)
				want := d.Seconds()
				if seconds, notPlain := strconv.ParseFloat(value, 64); err != nil && notPlain == nil {
					want = seconds
				}
				if math.Abs(got.Seconds()-want) > 1e-9*(want+1) {
					t.Errorf("%q: %s is %s, want %gs", dsn, name, got, want)
				}
			}
		}
		for name, ok := range documented {
			if !ok(cfg) {
				t.Errorf("%q: %s is out of its range: %+v", dsn, name, cfg)
			}
		}
		if cfg.PoolSize == 0 && cfg.MaxOverflow == 0 {
			t.Errorf("%q: no connection can ever be opened", dsn)
		}

		// One that nobody knows is refused, wherever it stands.
		_, query, found := strings.Cut(dsn[strings.LastIndexByte(dsn, '/')+1:], "?")
		if unknown := strings.TrimSuffix(dsn, "?"+query) + "?pool_unheard_of=1&" + query; found {
			if _, err := ParseDSN(unknown); err == nil {
				t.Errorf("%q is accepted", unknown)
			}
		}

		// Written down again, they are read as the same settings.
		written := "/"
		for i, p := range params {
			value := p.Show(cfg)
			if p.DSN == "pool_commit_table" {
				value = cfg.CommitTable
			}
			written += string("?&"[min(i, 1)]) + p.DSN + "=" + value
		}
		read, err := ParseDSN(written)
		if err != nil {
			t.Fatalf("%q, written as %q: %v", dsn, written, err)
		}
		read.MySQL, read.BackOff, cfg.MySQL, cfg.BackOff, cfg.Addrs = nil, nil, nil, nil, nil
		read.connectTimeoutGiven, read.targetGiven = cfg.connectTimeoutGiven, cfg.targetGiven // as every setting is when it is written
		if !reflect.DeepEqual(read, cfg) {
			t.Errorf("%q, written as %q: got %+v, want %+v", dsn, written, read, cfg)
		}
	})
}
