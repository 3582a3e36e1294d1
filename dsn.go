// dsn.go has the table of settings, which internal/setting reads, checks and shows.
// ParseDSN takes those out of the driver's DSN; a misspelt one is an error.

package livepool

import (
	"math"
	"regexp"
	"time"

	"github.com/livepool/livepool/internal/dsntext"
	"github.com/livepool/livepool/internal/setting"
)

// ParseDSN reads the driver's DSN with livepool's pool_* parameters in it:
//
//	user:password@tcp(host:3306)/db?parseTime=true&pool_size=20&pool_recycle=30m
//	user:password@tcp(db1:3306,db2:3306)/db?pool_target=primary
//
// An unknown pool_* parameter, a value that it does not take and a
// contradiction are errors that name the parameter, the value and what it
// takes. No error holds the password.
func ParseDSN(dsn string) (*Config, error) {
	cfg := NewConfig()
	my, addrs, ours, err := dsntext.Parse(dsn)
	if err != nil {
		return nil, err
	}
	cfg.MySQL, cfg.Addrs = my, addrs
	given, err := params.Read(cfg, ours)
	if err == nil {
		err = cfg.validate()
	}
	if err != nil {
		return nil, dsntext.HidePassword(dsn, err)
	}
	cfg.connectTimeoutGiven, cfg.targetGiven = given["pool_connect_timeout"], given["pool_target"]
	cfg.fitConnectTimeout()
	return cfg, nil
}

// fitConnectTimeout gives way to the driver's own timeout, which bounds the dial
// alone, where that is longer and ConnectTimeout was not chosen.
func (c *Config) fitConnectTimeout() {
	if c.MySQL != nil && !c.connectTimeoutGiven && c.ConnectTimeout == defaultConnectTimeout {
		c.ConnectTimeout = max(c.ConnectTimeout, c.MySQL.Timeout)
	}
}

// maxConns is the most connections a server can be set to take (max_connections).
const maxConns = 100000

// tableName keeps the name free of anything that would need quoting, because
// it becomes part of statements.
var tableName = regexp.MustCompile(`^[A-Za-z0-9_$]{1,64}(\.[A-Za-z0-9_$]{1,64})?$`)

// params is the table of settings, the one place that knows the DSN's words.
var params = setting.Table[Config]{
	setting.OneOf("pool_target", "Target", targetNames, func(c *Config) *Target { return &c.Target }),
	setting.Duration("pool_max_lag", "MaxLag", false, func(c *Config) *time.Duration { return &c.MaxLag }),
	setting.Int("pool_size", "PoolSize", 0, maxConns, func(c *Config) *int { return &c.PoolSize }),
	setting.Int("pool_max_overflow", "MaxOverflow", -1, maxConns, func(c *Config) *int { return &c.MaxOverflow }),
	setting.Duration("pool_timeout", "PoolTimeout", false, func(c *Config) *time.Duration { return &c.PoolTimeout }),
	setting.Int("pool_min_idle", "MinIdle", 0, maxConns, func(c *Config) *int { return &c.MinIdle }),
	setting.Duration("pool_idle_timeout", "IdleTimeout", false, func(c *Config) *time.Duration { return &c.IdleTimeout }),
	setting.Duration("pool_recycle", "Recycle", false, func(c *Config) *time.Duration { return &c.Recycle }).Alias("-1", "0"), // SQLAlchemy's word for no limit
	setting.Share("pool_recycle_jitter", "RecycleJitter", "the share of Recycle by which an age limit may be cut",
		func(c *Config) *float64 { return &c.RecycleJitter }),
	setting.OneOf("pool_pre_ping", "PrePing", prePingNames, func(c *Config) *PrePing { return &c.PrePing }),
	setting.Duration("pool_ping_after", "PingAfter", false, func(c *Config) *time.Duration { return &c.PingAfter }),
	setting.Duration("pool_ping_timeout", "PingTimeout", true, func(c *Config) *time.Duration { return &c.PingTimeout }),
	setting.Duration("pool_keepalive", "KeepAlive", false, func(c *Config) *time.Duration { return &c.KeepAlive }),
	setting.Duration("pool_hold_limit", "HoldLimit", false, func(c *Config) *time.Duration { return &c.HoldLimit }),
	setting.Duration("pool_connect_timeout", "ConnectTimeout", true, func(c *Config) *time.Duration { return &c.ConnectTimeout }),
	setting.Int("pool_connect_limit", "ConnectLimit", 1, maxConns, func(c *Config) *int { return &c.ConnectLimit }),
	setting.Duration("pool_outage_wait", "OutageWait", false, func(c *Config) *time.Duration { return &c.OutageWait }),
	setting.Duration("pool_commit_timeout", "CommitTimeout", true, func(c *Config) *time.Duration { return &c.CommitTimeout }),
	setting.OneOf("pool_kill_abandoned", "KillAbandoned", setting.Bools, func(c *Config) *bool { return &c.KillAbandoned }),
	setting.OneOf("pool_beacon", "Beacon", beaconNames, func(c *Config) *Beacon { return &c.Beacon }),
	setting.Duration("pool_stall_after", "StallAfter", false, func(c *Config) *time.Duration { return &c.StallAfter }),
	setting.Duration("pool_leak_after", "LeakAfter", false, func(c *Config) *time.Duration { return &c.LeakAfter }),
	setting.OneOf("pool_strict", "Strict", setting.Bools, func(c *Config) *bool { return &c.Strict }),
	setting.Int("pool_max_attempts", "MaxAttempts", 1, math.MaxInt32, func(c *Config) *int { return &c.MaxAttempts }),
	setting.Duration("pool_max_elapsed", "MaxElapsed", false, func(c *Config) *time.Duration { return &c.MaxElapsed }),
	setting.OneOf("pool_begin", "ExplicitBegin", []setting.Word[bool]{{Name: "auto", Value: false}, {Name: "explicit", Value: true}}, func(c *Config) *bool { return &c.ExplicitBegin }),
	setting.Text("pool_commit_table", "CommitTable", "a table name of letters, digits, _ and $, or schema.table", tableName,
		func(c *Config) *string { return &c.CommitTable }),
}
