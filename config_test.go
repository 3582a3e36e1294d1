package livepool_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// A DSN that was put together wrong, or whose password was not escaped, is read
// in odd ways. However it is read, no error and no log shows the password.
func TestPasswordIsInNoErrorAndNoLog(t *testing.T) {
	const secret = "s3cret"
	for _, dsn := range []string{
		"app:s3cret(127.0.0.1:1)/shop",
		"app:s3cret tcp(127.0.0.1:1)/shop",
		"app:s3cret:tcp(127.0.0.1:1)/shop",
		"app:a@s3cret:tcp(127.0.0.1:1)/shop",
		"app:x(s3cret)/y@tcp(127.0.0.1:1)",
		"app:p/x?s3cret=1@tcp(h)",
		"app:p/s3cret?x=1",
		"app:p/x?pool_s3cret",
		"app:p/x?pool_s3cret@tcp(h:1)",
		"app:p/x?pool_size=s3cret&q@tcp(h:1)",
		"app:p/x?loc=s3cret&q@tcp(h:1)",
		"app:a@tcp/x?pool_size=s3cret@tcp(h:1)",
		"app:a@tcp/x?loc=s3cret&q@tcp(h:1)",
		"app:s3cret@tcp(127.0.0.1:1)/shop",
		"app:s3cret@tcp(127.0.0.1:1)/shop?pool_sise=1",
		"app:s3cret@tcp(127.0.0.1:1,127.0.0.1:2)/shop",
		"app:p/tcp(s3cret,x)@tcp(127.0.0.1:1,127.0.0.1:2)/shop",
		"app:p/x@tcp(127.0.0.1:1,s3cret)",
		"app:tcp(a,s3cret)/shop?x=@",
		"app:s3cret@tcp(127.0.0.1:1)/shop?loc=nowhere",
		"app:s3cret@tcp(127.0.0.1:1)/shop?pool_connect_timeout=1ns",
	} {
		cfg, err := livepool.ParseDSN(dsn)
		if err != nil {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %v", dsn, err)
			}
			continue
		}
		var log labtest.Buffer
		cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		p, err := livepool.OpenConfig(cfg)
		if err == nil {
			err = p.Ping()
			p.Close()
		}
		if err == nil {
			t.Errorf("%s: a ping succeeded", dsn)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", dsn, err)
		}
		if strings.Contains(log.String(), secret) {
			t.Errorf("%s: the log has %s", dsn, log.String())
		}
	}
}

const base = "app:s3cret@tcp(db.example:3306)/shop"

func TestDSNDefaultsAreThoseOfNewConfig(t *testing.T) {
	cfg, err := livepool.ParseDSN(base)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.MySQL == nil || cfg.MySQL.Addr != "db.example:3306" || cfg.MySQL.DBName != "shop" || cfg.MySQL.Passwd != "s3cret" {
		t.Errorf("the driver's settings are %+v", cfg.MySQL)
	}
	cfg.MySQL, cfg.BackOff = nil, nil
	want := livepool.NewConfig()
	want.BackOff = nil
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got %+v, want %+v", cfg, want)
	}
}

func TestDefaults(t *testing.T) {
	c := livepool.NewConfig()
	if c.BackOff == nil {
		t.Error("BackOff is not set")
	}
	c.BackOff = nil
	if want := (livepool.Config{
		PoolSize: 10, MaxOverflow: 10, PoolTimeout: 30 * time.Second, IdleTimeout: 30 * time.Minute,
		Recycle: time.Hour, RecycleJitter: 0.2,
		PrePing: livepool.PrePingIdle, PingAfter: 500 * time.Millisecond, PingTimeout: time.Second, KeepAlive: 30 * time.Second, HoldLimit: time.Hour,
		ConnectTimeout: 5 * time.Second, ConnectLimit: 16, OutageWait: 10 * time.Second, CommitTimeout: 10 * time.Second,
		KillAbandoned: true, Beacon: livepool.BeaconAuto, StallAfter: 5 * time.Second,
		MaxAttempts: 10, MaxElapsed: 30 * time.Second, CommitTable: "livepool_commits",
	}); !reflect.DeepEqual(*c, want) {
		t.Errorf("got %+v, want %+v", *c, want)
	}
}

func TestDSNParameters(t *testing.T) {
	for _, tt := range []struct {
		params string
		get    func(*livepool.Config) any
		want   any
	}{
		{"pool_size=3", func(c *livepool.Config) any { return c.PoolSize }, 3},
		{"pool_size=0", func(c *livepool.Config) any { return c.PoolSize }, 0},
		{"pool_max_overflow=-1", func(c *livepool.Config) any { return c.MaxOverflow }, -1},
		{"pool_timeout=1m", func(c *livepool.Config) any { return c.PoolTimeout }, time.Minute},
		{"pool_hold_limit=2h", func(c *livepool.Config) any { return c.HoldLimit }, 2 * time.Hour},
		{"pool_min_idle=2", func(c *livepool.Config) any { return c.MinIdle }, 2},
		{"pool_idle_timeout=0", func(c *livepool.Config) any { return c.IdleTimeout }, time.Duration(0)},
		{"pool_recycle=3600", func(c *livepool.Config) any { return c.Recycle }, time.Hour},
		{"pool_recycle=1.5", func(c *livepool.Config) any { return c.Recycle }, 1500 * time.Millisecond},
		{"pool_recycle=1h30m", func(c *livepool.Config) any { return c.Recycle }, 90 * time.Minute},
		{"pool_recycle_jitter=0.5", func(c *livepool.Config) any { return c.RecycleJitter }, 0.5},
		{"pool_size=1", func(c *livepool.Config) any { return c.Target }, livepool.TargetPrimary},
		{"pool_target=primary", func(c *livepool.Config) any { return c.Target }, livepool.TargetPrimary},
		{"pool_target=replica", func(c *livepool.Config) any { return c.Target }, livepool.TargetReplica},
		{"pool_target=Prefer-Replica", func(c *livepool.Config) any { return c.Target }, livepool.TargetPreferReplica},
		{"pool_target=any", func(c *livepool.Config) any { return c.Target }, livepool.TargetAny},
		{"pool_pre_ping=true", func(c *livepool.Config) any { return c.PrePing }, livepool.PrePingIdle},
		{"pool_pre_ping=idle", func(c *livepool.Config) any { return c.PrePing }, livepool.PrePingIdle},
		{"pool_pre_ping=always", func(c *livepool.Config) any { return c.PrePing }, livepool.PrePingAlways},
		{"pool_pre_ping=false", func(c *livepool.Config) any { return c.PrePing }, livepool.PrePingOff},
		{"pool_pre_ping=off", func(c *livepool.Config) any { return c.PrePing }, livepool.PrePingOff},
		{"pool_ping_after=2m", func(c *livepool.Config) any { return c.PingAfter }, 2 * time.Minute},
		{"pool_ping_timeout=250ms", func(c *livepool.Config) any { return c.PingTimeout }, 250 * time.Millisecond},
		{"pool_keepalive=0", func(c *livepool.Config) any { return c.KeepAlive }, time.Duration(0)},
		{"pool_connect_timeout=2", func(c *livepool.Config) any { return c.ConnectTimeout }, 2 * time.Second},
		{"pool_max_lag=5", func(c *livepool.Config) any { return c.MaxLag }, 5 * time.Second},
		{"pool_connect_limit=3", func(c *livepool.Config) any { return c.ConnectLimit }, 3},
		{"pool_outage_wait=0", func(c *livepool.Config) any { return c.OutageWait }, time.Duration(0)},
		{"pool_commit_timeout=3s", func(c *livepool.Config) any { return c.CommitTimeout }, 3 * time.Second},
		{"pool_kill_abandoned=false", func(c *livepool.Config) any { return c.KillAbandoned }, false},
		{"pool_beacon=off", func(c *livepool.Config) any { return c.Beacon }, livepool.BeaconOff},
		{"pool_beacon=on", func(c *livepool.Config) any { return c.Beacon }, livepool.BeaconOn},
		{"pool_stall_after=0", func(c *livepool.Config) any { return c.StallAfter }, time.Duration(0)},
		{"pool_leak_after=10s", func(c *livepool.Config) any { return c.LeakAfter }, 10 * time.Second},
		{"pool_max_attempts=1", func(c *livepool.Config) any { return c.MaxAttempts }, 1},
		{"pool_max_elapsed=1m", func(c *livepool.Config) any { return c.MaxElapsed }, time.Minute},
		{"pool_commit_table=ops.commits", func(c *livepool.Config) any { return c.CommitTable }, "ops.commits"},
		{"parseTime=true&pool_size=4&loc=UTC&time_zone=%27%2B00%3A00%27", func(c *livepool.Config) any {
			return []any{c.PoolSize, c.MySQL.ParseTime, c.MySQL.Params["time_zone"]}
		}, []any{4, true, "'+00:00'"}},
	} {
		cfg, err := livepool.ParseDSN(base + "?" + tt.params)
		if err != nil {
			t.Errorf("%s: %v", tt.params, err)
			continue
		}
		if got := tt.get(cfg); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.params, got, tt.want)
		}
		for name := range cfg.MySQL.Params {
			if strings.HasPrefix(name, "pool_") {
				t.Errorf("%s: %s reaches the driver, which would SET it", tt.params, name)
			}
		}
	}
}

// A bad value is an error that names the parameter, the value and what it takes.
func TestBadDSNParameters(t *testing.T) {
	for _, tt := range []struct {
		params string
		says   []string
	}{
		{"pool_size=many", []string{"pool_size=many", "whole number from 0"}},
		{"pool_size=-1", []string{"pool_size=-1", "whole number from 0"}},
		{"pool_size=9999999999999999999999", []string{"pool_size=9999999999999999999999", "whole number"}},
		{"pool_size=", []string{"pool_size=", "whole number"}},
		{"pool_size", []string{"pool_size", "whole number"}},
		{"pool_size=1&pool_size=2", []string{"pool_size", "twice"}},
		{"pool_sise=10", []string{"unknown", "pool_sise", "pool_size"}},
		{"pool_=10", []string{"unknown", "pool_"}},
		{"pool_max_overflow=-2", []string{"pool_max_overflow=-2", "from -1"}},
		{"pool_recycle=yesterday", []string{"pool_recycle=yesterday", "duration"}},
		{"pool_recycle=-1s", []string{"pool_recycle=-1s", "0 or more"}},
		{"pool_recycle=1e400", []string{"pool_recycle=1e400", "duration"}},
		{"pool_recycle_jitter=1.5", []string{"pool_recycle_jitter=1.5", "from 0 to 1"}},
		{"pool_recycle_jitter=NaN", []string{"pool_recycle_jitter=NaN", "from 0 to 1"}},
		{"pool_pre_ping=maybe", []string{"pool_pre_ping=maybe", "idle, true, 1, on, always, off, false, 0"}},
		{"pool_ping_timeout=0", []string{"pool_ping_timeout=0", "above 0"}},
		{"pool_target=master", []string{"pool_target=master", "primary, replica, prefer-replica, any"}},
		{"pool_max_lag=-1s", []string{"pool_max_lag=-1s", "0 or more"}},
		{"pool_connect_limit=0", []string{"pool_connect_limit=0", "a whole number from 1"}},
		{"pool_connect_timeout=0s", []string{"pool_connect_timeout=0s", "above 0"}},
		{"pool_commit_timeout=-5", []string{"pool_commit_timeout=-5", "above 0"}},
		{"pool_kill_abandoned=perhaps", []string{"pool_kill_abandoned=perhaps", "true, false"}},
		{"pool_target=", []string{"pool_target=", "primary"}},
		{"pool_beacon=maybe", []string{"pool_beacon=maybe", "off, auto, on"}},
		{"pool_max_attempts=0", []string{"pool_max_attempts=0", "from 1"}},
		{"pool_commit_table=t;DROP", []string{"pool_commit_table", "letters, digits"}},
		{"pool_size=%zz", []string{"pool_size=%zz", "whole number"}},
		{"pool_min_idle=11", []string{"MinIdle", "pool_min_idle", "11", "PoolSize", "pool_size", "10"}},
		{"pool_size=0&pool_max_overflow=0", []string{"PoolSize", "MaxOverflow", "no connection"}},
		{"parseTime=maybe&pool_size=3", []string{"driver", "maybe"}},
		{"strict=true", []string{"driver", "strict"}},
	} {
		_, err := livepool.Open(base + "?" + tt.params)
		if err == nil {
			t.Errorf("%s: no error", tt.params)
			continue
		}
		for _, part := range append(tt.says, "livepool: ") {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", tt.params, err, part)
			}
		}
	}
}

// However a DSN is broken, no piece of the password is in the error.
func TestNoErrorHoldsThePassword(t *testing.T) {
	const secret = "s3cret"
	for _, dsn := range []string{
		"app:s3cret@tcp(db:3306)",
		"app:s3cret@tcp(db:3306",
		"app:s3cret@tcp(db:3306/shop",
		"app:s3cret/",
		"app:s3cret/shop",
		"app:p/s3cret%zz@tcp(db)",
		"app:p/s3cret%zz",
		"app:p/x?parseTime=s3cret@tcp(db:3306)",
		"app:p/x?pool_size=s3cret@tcp(db:3306)",
		"app:p/x?pool_size=s3cret%40tcp(db:3306)",
		"app:s3cret@tcp(db:3306)/shop?loc=US/Pacific",
		"app:s3cret@tcp(db:3306)/shop?pool_size=x",
		"app:s3cret@tcp(db:3306)/shop?pool_sise=3",
		"app:s3cret@nowhere/shop",
		"app:s3cret@tcp(db1,)/shop",
		"app:tcp(s3cret,s3cret)/shop",
		"app:s3cret@tcp(db1,db2)/shop?pool_target=x",
		"app:s3cret@tcp(db:3306)/shop?tls=nosuch",
	} {
		if _, err := livepool.Open(dsn); err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", dsn, err)
		}
	}
}

// Without its slash a DSN is none, as for the driver.
func TestDSNHasASlash(t *testing.T) {
	for _, dsn := range []string{"?pool_size=3", "app@tcp(db:3306)?pool_size=3"} {
		if _, err := livepool.ParseDSN(dsn); err == nil {
			t.Errorf("%s is accepted", dsn)
		}
	}
}

func TestBadConfigs(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*livepool.Config)
		says   []string
	}{
		{"an address beside others", func(c *livepool.Config) { c.Addrs = []string{"a:1", "b:2"} }, []string{"Addrs", "MySQL.Addr", "contradict"}},
		{"an address that is not the first", func(c *livepool.Config) { c.Addrs = []string{"a:1", "db.example:3306"} }, []string{"contradict"}},
		{"a host twice", func(c *livepool.Config) { c.MySQL.Addr, c.Addrs = "", []string{"a", "b", "a:3306"} }, []string{"host 3 of 3", "twice"}},
		{"a host without a name", func(c *livepool.Config) { c.MySQL.Addr, c.Addrs = "", []string{"a", ":1"} }, []string{"host 2 of 2", "host:port"}},
		{"unknown target", func(c *livepool.Config) { c.Target = 7 }, []string{"Target(7)", "pool_target", "primary, replica, prefer-replica, any"}},
		{"no MySQL", func(c *livepool.Config) { c.MySQL = nil }, []string{"Config.MySQL is not set"}},
		{"negative size", func(c *livepool.Config) { c.PoolSize = -1 }, []string{"PoolSize (pool_size) is -1"}},
		{"size and overflow that overflow an int", func(c *livepool.Config) { c.PoolSize, c.MaxOverflow = math.MaxInt, math.MaxInt }, []string{"PoolSize"}},
		{"negative timeout", func(c *livepool.Config) { c.PoolTimeout = -1 }, []string{"PoolTimeout (pool_timeout) is -1ns"}},
		{"no connect timeout", func(c *livepool.Config) { c.ConnectTimeout = 0 }, []string{"ConnectTimeout", "above 0"}},
		{"unknown mode", func(c *livepool.Config) { c.PrePing = 7 }, []string{"PrePing(7)"}},
		{"unknown beacon", func(c *livepool.Config) { c.Beacon = -1 }, []string{"Beacon(-1)"}},
		{"jitter not a number", func(c *livepool.Config) { c.RecycleJitter = math.NaN() }, []string{"RecycleJitter", "NaN"}},
		{"table name", func(c *livepool.Config) { c.CommitTable = "a b" }, []string{"CommitTable", `"a b"`}},
		{"the driver refuses", func(c *livepool.Config) { c.MySQL.Net = "carrier-pigeon"; c.MySQL.Addr = "" }, []string{"driver", "carrier-pigeon"}},
	} {
		cfg, err := livepool.ParseDSN(base)
		if err != nil {
			t.Fatal(err)
		}
		tt.change(cfg)
		_, err = livepool.OpenConfig(cfg)
		if err == nil {
			t.Errorf("%s: no error", tt.name)
			continue
		}
		for _, part := range append(tt.says, "livepool: ") {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", tt.name, err, part)
			}
		}
		if _, err := livepool.NewConnector(nil, cfg); err == nil {
			t.Errorf("%s: NewConnector takes it", tt.name)
		}
	}
	if _, err := livepool.OpenConfig(nil); err == nil {
		t.Error("OpenConfig takes a nil Config")
	}
	if _, err := livepool.OpenConnector(nil, nil); err == nil {
		t.Error("OpenConnector takes a nil Connector")
	}
}

// The user's own settings stay the user's.
func TestConfigIsNotChanged(t *testing.T) {
	cfg, err := livepool.ParseDSN(base + "?pool_size=3")
	if err != nil {
		t.Fatal(err)
	}
	before := *cfg.MySQL
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if cfg.MySQL.DialFunc != nil || cfg.MySQL.CheckConnLiveness != before.CheckConnLiveness {
		t.Error("opening a pool changed the driver's settings")
	}
	cfg.PoolSize = 99
	if got := p.Stats().MaxOpenConnections; got != 13 {
		t.Errorf("the pool allows %d connections, want 13: 3 and an overflow of 10", got)
	}
	if _, ok := p.Driver().(*mysql.MySQLDriver); !ok {
		t.Errorf("Driver is %T, want the MySQL driver's", p.Driver())
	}
}

func TestWordsPrintAsTheDSNTakesThem(t *testing.T) {
	for got, want := range map[string]string{
		livepool.PrePingIdle.String(): "idle", livepool.PrePingAlways.String(): "always", livepool.PrePingOff.String(): "off",
		livepool.BeaconAuto.String(): "auto", livepool.BeaconOn.String(): "on", livepool.BeaconOff.String(): "off",
		livepool.TargetPrimary.String(): "primary", livepool.TargetReplica.String(): "replica",
		livepool.TargetPreferReplica.String(): "prefer-replica", livepool.TargetAny.String(): "any",
		livepool.Class(0).String():                     "0",
		(livepool.ConnDead | livepool.NotRun).String(): "ConnDead|NotRun",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// The driver's own timeout is not cut short by a default, and where a setting that
// was chosen does so, Open says it.
func TestConnectTimeoutAndTheDriversOwn(t *testing.T) {
	for params, want := range map[string]struct {
		timeout time.Duration
		warns   bool
	}{
		"":                                      {5 * time.Second, false},
		"timeout=1s":                            {5 * time.Second, false},
		"timeout=30s":                           {30 * time.Second, false},
		"timeout=30s&pool_connect_timeout=40s":  {40 * time.Second, false},
		"timeout=30s&pool_connect_timeout=5s":   {5 * time.Second, true},
		"pool_connect_timeout=200ms&timeout=1s": {200 * time.Millisecond, true},
	} {
		cfg, err := livepool.ParseDSN("u:p@tcp(127.0.0.1:1)/db?" + params)
		if err != nil {
			t.Fatal(err)
		}
		var log labtest.CapturedLog
		cfg.Logger = slog.New(&log)
		p, err := livepool.OpenConfig(cfg)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		if cfg.ConnectTimeout != want.timeout || (len(log.LinesWith("pool_connect_timeout")) == 1) != want.warns {
			t.Errorf("%q: %s, %q", params, cfg.ConnectTimeout, log.LinesWith(""))
		}
	}
}

// Whichever way a Config is printed, the password is not in it.
func TestConfigPrintsWithoutThePassword(t *testing.T) {
	cfg, err := livepool.ParseDSN("app:s3cret@tcp(db:3306)/shop?pool_size=7")
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("opening", "config", cfg, "by value", *cfg)
	for _, text := range []string{
		fmt.Sprintf("%s %v %+v %#v", cfg, cfg, cfg, cfg), fmt.Sprintf("%s %v %+v %#v", *cfg, *cfg, *cfg, *cfg),
		fmt.Sprint(struct{ C *livepool.Config }{cfg}), log.String(),
	} {
		if strings.Contains(text, "s3cret") {
			t.Errorf("the password is in %s", text)
		}
	}
	if text := cfg.String(); !strings.Contains(text, "app@tcp(db:3306)/shop") || !strings.Contains(text, "pool_size=7") {
		t.Errorf("%s does not say what is set", text)
	}
}

// A Config shows where its pool would lead: all hosts, and what is wanted of them.
func TestConfigPrintsItsHosts(t *testing.T) {
	for dsn, says := range map[string][]string{
		"app:s3cret@tcp(db:3306)/shop":                                     {"app@tcp(db:3306)/shop", "pool_target=primary"},
		"app:s3cret@tcp(db1:3306,db2,[::1]:3307)/shop":                     {"app@tcp(db1:3306,db2:3306,[::1]:3307)/shop", "pool_target=primary"},
		"app:s3cret@unix(/a,/b)/shop?pool_target=prefer-replica":           {"app@unix(/a,/b)/shop", "pool_target=prefer-replica"},
		"app:s3cret@tcp(db:3306)/shop?pool_target=any&pool_max_overflow=1": {"app@tcp(db:3306)/shop", "pool_target=any"},
	} {
		cfg, err := livepool.ParseDSN(dsn)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range says {
			if text := cfg.String(); !strings.Contains(text, part) || strings.Contains(text, "s3cret") {
				t.Errorf("%s: %s, want %s in it, and no password", dsn, text, part)
			}
		}
	}
}

// Hosts may be given beside MySQL.Addr, which is then the first of them, or without it. The
// caller's list stays as it is.
func TestHostsOfAConfig(t *testing.T) {
	for _, addr := range []string{"", "127.0.0.1:1"} {
		cfg := livepool.NewConfig()
		cfg.MySQL, cfg.Addrs, cfg.OutageWait = &mysql.Config{Addr: addr, Passwd: "s3cret"}, []string{"127.0.0.1:1", "127.0.0.1:2"}, 0
		p, err := livepool.OpenConfig(cfg)
		if err != nil {
			t.Errorf("%q: %v", addr, err)
			continue
		}
		cfg.Addrs[0] = "another:1"
		err = p.PingContext(t.Context())
		p.Close()
		if err == nil || !strings.Contains(err.Error(), "tcp(127.0.0.1:1,127.0.0.1:2)") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: got %v, want both addresses in it, and no password", addr, err)
		}
	}
}

// A list of hosts is shown as the DSN has it, and is in the errors.
func TestSeveralHostsAreShown(t *testing.T) {
	cfg, err := livepool.ParseDSN("app:s3cret@tcp(127.0.0.1:1,127.0.0.2:1)/shop?pool_outage_wait=0")
	if err != nil {
		t.Fatal(err)
	}
	if text := cfg.String(); !strings.Contains(text, "app@tcp(127.0.0.1:1,127.0.0.2:1)/shop") {
		t.Errorf("%s does not say which hosts", text)
	}
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = p.ExecContext(t.Context(), "DO 1")
	if !errors.Is(err, livepool.ErrUnreachable) || !strings.Contains(err.Error(), "none of 2 hosts") ||
		!strings.Contains(err.Error(), "tcp(127.0.0.1:1): ") || !strings.Contains(err.Error(), "tcp(127.0.0.2:1): ") {
		t.Errorf("got %v, want what each host said", err)
	}
}

// An error says where the connection would have led, as the driver fills it in.
func TestAddressIsWhatTheDriverDials(t *testing.T) {
	cfg := livepool.NewConfig()
	cfg.MySQL = &mysql.Config{Addr: "127.0.0.1:1"}
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.PingContext(t.Context()); err == nil || !strings.Contains(err.Error(), "tcp(127.0.0.1:1)") {
		t.Errorf("got %v, want the address in it", err)
	}
}

// A setting that was misspelt, or is called so by another pool, is an error at
// Open that says what was meant. Without that it would become a variable of the
// server, and fail at every connect.
func TestNearMissesAreToldAtOpen(t *testing.T) {
	for name, meant := range map[string]string{
		"poolsize": "pool_size", "poolSize": "pool_size", "pool%5Fsize": "pool_size", "POOL_SIZE": "pool_size",
		"pool_sise": "pool_size", "pool-size": "pool_size", "maximumPoolSize": "pool_size", "SetMaxOpenConns": "pool_size",
		"max_open_conns": "pool_size", "max_overflow": "pool_max_overflow", "maxOverflow": "pool_max_overflow",
		"pool_max_conns": "pool_size", "maxLifetime": "pool_recycle", "connMaxLifetime": "pool_recycle",
		"pool_max_conn_lifetime": "pool_recycle", "recycle": "pool_recycle", "pre_ping": "pool_pre_ping",
		"pool_preping": "pool_pre_ping", "minimumIdle": "pool_min_idle", "min_idle": "pool_min_idle", "idleTimeout": "pool_idle_timeout",
		"connectionTimeout": "pool_timeout", "leakDetectionThreshold": "pool_leak_after", "pool_keep_alive": "pool_keepalive",
	} {
		_, err := livepool.Open(base + "?parseTime=true&" + name + "=3")
		if err == nil || !strings.Contains(err.Error(), "did you mean "+meant+"?") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want to be asked whether %s was meant", name, err, meant)
		}
	}
	for _, name := range []string{"timeout", "sql_mode", "wait_timeout", "lock_wait_timeout", "max_statement_time", "net_read_timeout", "time_zone", "max_allowed_packet", "idle_transaction_timeout"} {
		if _, err := livepool.ParseDSN(base + "?" + name + "=3s"); err != nil {
			t.Errorf("%s, which is the driver's or the server's: %v", name, err)
		}
	}
	if _, err := livepool.Open(base + "?pooled=3"); err == nil || !strings.Contains(err.Error(), "known are") {
		t.Errorf("pooled: got %v, want what is known", err)
	}
	cfg := livepool.NewConfig()
	cfg.MySQL = mysql.NewConfig()
	cfg.MySQL.Params = map[string]string{"pool_size": "3"} // read by the driver's ParseDSN
	if _, err := livepool.OpenConfig(cfg); err == nil || !strings.Contains(err.Error(), "Config.PoolSize") {
		t.Errorf("got %v, want the field to set", err)
	}
}

// Words are read as the driver reads them, and as SQLAlchemy's users write them.
func TestWordsAreReadInAnyCase(t *testing.T) {
	for params, want := range map[string]func(c *livepool.Config) bool{
		"pool_pre_ping=True":        func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingIdle },
		"pool_pre_ping=1":           func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingIdle },
		"pool_pre_ping=FALSE":       func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingOff },
		"pool_pre_ping=0":           func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingOff },
		"pool_kill_abandoned=TRUE":  func(c *livepool.Config) bool { return c.KillAbandoned },
		"pool_kill_abandoned=False": func(c *livepool.Config) bool { return !c.KillAbandoned },
		"pool_beacon=Off":           func(c *livepool.Config) bool { return c.Beacon == livepool.BeaconOff },
		"pool_recycle=-1":           func(c *livepool.Config) bool { return c.Recycle == 0 },
	} {
		if cfg, err := livepool.ParseDSN(base + "?" + params); err != nil || !want(cfg) {
			t.Errorf("%s: %v, %v", params, cfg, err)
		}
	}
}

// The first host of a list is the driver's too, however the driver writes it down: what it does
// to an address, or does not, is no contradiction.
func TestFirstHostAsTheDriverWritesItIsNoContradiction(t *testing.T) {
	for dsn, want := range map[string]string{
		"app@tcp([::1],db2)/shop":      "[::1]:3306,db2:3306",
		"app@tcp4(db1,db2)/shop":       "db1:3306,db2:3306",
		"app@tcp6([::1],db2:3307)/":    "[::1]:3306,db2:3307",
		"app@tcp4(db1:3306,db2)/shop":  "db1:3306,db2:3306",
		"app@tcp6([::1]:1,[::2]:1)/db": "[::1]:1,[::2]:1",
	} {
		cfg, err := livepool.ParseDSN(dsn)
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
		} else if got := strings.Join(cfg.Addrs, ","); got != want {
			t.Errorf("%s: %s, want %s", dsn, got, want)
		}
	}
	for _, tt := range []struct {
		addr  string
		addrs []string
	}{
		{"db1:3306", []string{"db1", "db2"}}, // as mysql.ParseDSN leaves it
		{"db1", []string{"db1:3306", "db2:3306"}},
	} {
		cfg := livepool.NewConfig()
		cfg.MySQL, cfg.Addrs = &mysql.Config{Addr: tt.addr}, tt.addrs
		p, err := livepool.OpenConfig(cfg)
		if err != nil {
			t.Errorf("%s beside %q: %v", tt.addr, tt.addrs, err)
			continue
		}
		p.Close()
	}
}
