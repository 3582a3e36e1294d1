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

// documented is what the README says of each parameter: its name, and what it may be.
var documented = map[string]func(c *Config) bool{
	"pool_size":            func(c *Config) bool { return c.PoolSize >= 0 && c.PoolSize <= 100000 },
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
	"pool_leak_after":      func(c *Config) bool { return c.LeakAfter >= 0 },
	"pool_max_attempts":    func(c *Config) bool { return c.MaxAttempts >= 1 },
	"pool_max_elapsed":     func(c *Config) bool { return c.MaxElapsed >= 0 },
	"pool_commit_table": func(c *Config) bool {
		return c.CommitTable != "" && strings.Trim(c.CommitTable, wordBytes+".") == "" && strings.Count(c.CommitTable, ".") <= 1
	},
}

// durations are those of the settings that are times.
func durations(c *Config) map[string]time.Duration {
	return map[string]time.Duration{
		"pool_idle_timeout": c.IdleTimeout, "pool_recycle": c.Recycle, "pool_ping_after": c.PingAfter,
		"pool_ping_timeout": c.PingTimeout, "pool_keepalive": c.KeepAlive, "pool_connect_timeout": c.ConnectTimeout,
		"pool_commit_timeout": c.CommitTimeout, "pool_timeout": c.PoolTimeout, "pool_stall_after": c.StallAfter,
		"pool_leak_after": c.LeakAfter, "pool_max_elapsed": c.MaxElapsed,
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

func sameDriverSettings(a, b *mysql.Config) bool {
	a, b = a.Clone(), b.Clone()
	if a.Loc.String() != b.Loc.String() { // each load makes a new one
		return false
	}
	a.Loc, b.Loc = nil, nil
	return a.FormatDSN() == b.FormatDSN() && reflect.DeepEqual(a, b)
}

// FuzzParseDSN puts a known password between before and after, and @ or its
// escape behind it.
func FuzzParseDSN(f *testing.F) {
	for _, params := range []string{
		"", "?parseTime=true&pool_size=20&pool_recycle=30m", "?pool_recycle=1.5&pool_keepalive=0&time_zone=%27%2B00%3A00%27",
		"?pool_pre_ping=always&pool_beacon=on&pool_kill_abandoned=off", "?pool_commit_table=ops.commits&pool_recycle_jitter=1e-1",
		"?pool_sise=3", "?pool_size", "?pool_size=1&pool_size=2", "?pool_min_idle=11", "?strict=true", "?tls=preferred&loc=Local",
	} {
		f.Add("app", "", "", "tcp(db.example:3306)/shop"+params, false)
	}
	for _, rest := range []string{"tcp(db:3306)", "tcp(db:3306", "nowhere/shop", "unix(/run/mysqld.sock)/", "tcp([::1]:3306)/a%2Fb"} {
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
		theirs, ours, err := driverReads(dsn)
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
		read.MySQL, read.BackOff, cfg.MySQL, cfg.BackOff = nil, nil, nil, nil
		read.connectTimeoutGiven = cfg.connectTimeoutGiven // as every setting is when it is written
		if !reflect.DeepEqual(read, cfg) {
			t.Errorf("%q, written as %q: got %+v, want %+v", dsn, written, read, cfg)
		}
	})
}
