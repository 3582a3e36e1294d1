// dsn.go has the table of settings: for each its names, what it takes, and how it is
// read, checked and shown. ParseDSN takes those out of the driver's DSN; a misspelt one
// is an error.

package livepool

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/setting"
	"github.com/livepool/livepool/internal/spelling"
)

// ParseDSN reads the driver's DSN with livepool's pool_* parameters in it:
//
//	user:password@tcp(host:3306)/db?parseTime=true&pool_size=20&pool_recycle=30m
//
// An unknown pool_* parameter, a value that it does not take and a
// contradiction are errors that name the parameter, the value and what it
// takes. No error holds the password.
func ParseDSN(dsn string) (*Config, error) {
	cfg := NewConfig()
	ours, theirs := splitDSN(dsn)
	my, err := parseDriverDSN(theirs)
	if err != nil {
		return nil, err
	}
	cfg.MySQL = my
	err = cfg.read(ours)
	switch {
	case err == nil:
		cfg.fitConnectTimeout()
		return cfg, nil
	case mayHoldPassword(dsn[strings.LastIndexByte(dsn, '/')+1:]):
		return nil, errUnreadableDSN
	}
	return nil, err
}

// read reads the name=value pairs of a DSN, and validates what comes of it.
func (c *Config) read(pairs []string) error {
	seen := map[string]bool{}
	for _, pair := range pairs {
		if err := c.set(pair, seen); err != nil {
			return err
		}
	}
	c.connectTimeoutGiven = seen["pool_connect_timeout"]
	return c.validate()
}

// fitConnectTimeout gives way to the driver's own timeout, which bounds the dial
// alone, where that is longer and ConnectTimeout was not chosen.
func (c *Config) fitConnectTimeout() {
	if c.MySQL != nil && !c.connectTimeoutGiven && c.ConnectTimeout == defaultConnectTimeout {
		c.ConnectTimeout = max(c.ConnectTimeout, c.MySQL.Timeout)
	}
}

// errUnreadableDSN quotes nothing. With a slash, a bracket or the @ astray, what
// the driver takes for a network or a parameter is a piece of the password.
var errUnreadableDSN = errors.New("livepool: the DSN cannot be read; it has the form user:password@tcp(host:port)/database?name=value, " +
	"where names and values are URL-escaped (/ is %2F, @ is %40) and the slash before the database is never left out " +
	"(it is not quoted here because it may hold the password)")

// mayHoldPassword says whether what follows a DSN's last slash has signs of what
// belongs before it.
func mayHoldPassword(tail string) bool {
	return strings.ContainsAny(tail, "@()") || strings.Contains(tail, "%40")
}

// splitDSN takes the pool_* parameters out of a DSN. The parameters begin at
// the first question mark after the last slash, as in the driver, which refuses
// a DSN without a slash.
func splitDSN(dsn string) (ours []string, theirs string) {
	head := strings.LastIndexByte(dsn, '/') + 1
	if head == 0 {
		return nil, dsn
	}
	db, query, found := strings.Cut(dsn[head:], "?")
	if !found {
		return nil, dsn
	}
	var rest []string
	for pair := range strings.SplitSeq(query, "&") {
		if strings.HasPrefix(pair, "pool_") {
			ours = append(ours, pair)
		} else {
			rest = append(rest, pair)
		}
	}
	theirs = dsn[:head] + db
	if len(rest) > 0 {
		theirs += "?" + strings.Join(rest, "&")
	}
	return ours, theirs
}

// set reads one of them.
func (c *Config) set(pair string, seen map[string]bool) error {
	name, escaped, hasValue := strings.Cut(pair, "=")
	i := slices.IndexFunc(params, func(p setting.Setting[Config]) bool { return p.DSN == name })
	if i < 0 {
		return errUnknownParam(name)
	}
	p := params[i]
	if seen[name] {
		return fmt.Errorf("livepool: DSN parameter %s is given twice", name)
	}
	seen[name] = true
	value, err := url.QueryUnescape(escaped)
	if err != nil || !hasValue || !p.Set(c, value) || !p.OK(c) {
		return fmt.Errorf("livepool: DSN parameter %s=%s: takes %s", name, escaped, p.Takes)
	}
	return nil
}

func errUnknownParam(name string) error {
	closest := ""
	if p := spelling.Closest(name, paramNames()); p != "" {
		closest = "did you mean " + p + "? "
	}
	return fmt.Errorf("livepool: unknown DSN parameter %s; %sknown are %s", name, closest, strings.Join(paramNames(), ", "))
}

// misplacedParams finds, among the parameters that the driver would set as variables of
// the server, those that were meant for livepool: misspelt, or by the name that
// another pool has for them.
func (c *Config) misplacedParams() error {
	if c.MySQL == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.MySQL.Params)) {
		switch p := spelling.Closest(name, paramNames()); {
		case p != "" && p == name:
			return fmt.Errorf("livepool: Config.MySQL.Params has %s: set Config.%s, or have livepool.ParseDSN read the DSN", name, fieldOf(p))
		case p != "", strings.HasPrefix(spelling.Normalize(name), "pool"):
			return errUnknownParam(name)
		}
	}
	return nil
}

func fieldOf(dsn string) string {
	i := slices.IndexFunc(params, func(p setting.Setting[Config]) bool { return p.DSN == dsn })
	return params[i].Field
}

func paramNames() []string {
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.DSN
	}
	return names
}

// networkName is what a network can be called: what a DSN with its @ astray has
// in this place is no such name.
var networkName = regexp.MustCompile(`^[A-Za-z0-9_.+-]*$`)

// parseDriverDSN lets the driver read its part. Its errors quote what they
// could not read; so the two parts are tried apart, and only an error about
// parameters is passed on.
func parseDriverDSN(dsn string) (*mysql.Config, error) {
	cfg, err := safeParse(dsn)
	if err == nil {
		if !networkName.MatchString(cfg.Net) || strings.ContainsAny(cfg.Addr, "@()") && cfg.Net != "unix" {
			return nil, errUnreadableDSN
		}
		return cfg, nil
	}
	base, query, _ := strings.Cut(dsn[strings.LastIndexByte(dsn, '/')+1:], "?")
	_, baseErr := safeParse(dsn[:strings.LastIndexByte(dsn, '/')+1] + base)
	if baseErr != nil || mayHoldPassword(query) {
		return nil, errUnreadableDSN
	}
	return nil, fmt.Errorf("livepool: the driver refuses a parameter of the DSN: %w", err)
}

// safeParse is the driver's ParseDSN, which panics on a parameter it no longer
// has (strict).
func safeParse(dsn string) (cfg *mysql.Config, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return mysql.ParseDSN(dsn)
}

// maxConns is the most connections a server can be set to take (max_connections).
const maxConns = 100000

// tableName keeps the name free of anything that would need quoting, because
// it becomes part of statements.
var tableName = regexp.MustCompile(`^[A-Za-z0-9_$]{1,64}(\.[A-Za-z0-9_$]{1,64})?$`)

// params is the table of settings, the one place that knows the DSN's words.
var params = []setting.Setting[Config]{
	setting.Int("pool_size", "PoolSize", 0, maxConns, func(c *Config) *int { return &c.PoolSize }),
	setting.Int("pool_max_overflow", "MaxOverflow", -1, maxConns, func(c *Config) *int { return &c.MaxOverflow }),
	setting.Duration("pool_timeout", "PoolTimeout", false, func(c *Config) *time.Duration { return &c.PoolTimeout }),
	setting.Int("pool_min_idle", "MinIdle", 0, maxConns, func(c *Config) *int { return &c.MinIdle }),
	setting.Duration("pool_idle_timeout", "IdleTimeout", false, func(c *Config) *time.Duration { return &c.IdleTimeout }),
	recycleParam,
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
	setting.Int("pool_max_attempts", "MaxAttempts", 1, math.MaxInt32, func(c *Config) *int { return &c.MaxAttempts }),
	setting.Duration("pool_max_elapsed", "MaxElapsed", false, func(c *Config) *time.Duration { return &c.MaxElapsed }),
	setting.Text("pool_commit_table", "CommitTable", "a table name of letters, digits, _ and $, or schema.table", tableName,
		func(c *Config) *string { return &c.CommitTable }),
}

// recycleParam takes SQLAlchemy's -1, too, for no limit.
var recycleParam = func() setting.Setting[Config] {
	p := setting.Duration("pool_recycle", "Recycle", false, func(c *Config) *time.Duration { return &c.Recycle })
	set := p.Set
	p.Set = func(c *Config, value string) bool {
		if value == "-1" {
			value = "0"
		}
		return set(c, value)
	}
	return p
}()
