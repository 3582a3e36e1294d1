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
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
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
	seen := map[string]bool{}
	for _, pair := range ours {
		if err := cfg.set(pair, seen); err != nil {
			if mayHoldPassword(dsn[strings.LastIndexByte(dsn, '/')+1:]) {
				return nil, errUnreadableDSN
			}
			return nil, err
		}
	}
	if err := cfg.validate(); err != nil {
		if mayHoldPassword(dsn[strings.LastIndexByte(dsn, '/')+1:]) {
			return nil, errUnreadableDSN
		}
		return nil, err
	}
	cfg.connectTimeoutGiven = seen["pool_connect_timeout"]
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

// set reads one name=value pair of a DSN.
func (c *Config) set(pair string, seen map[string]bool) error {
	name, escaped, hasValue := strings.Cut(pair, "=")
	i := slices.IndexFunc(params, func(p param) bool { return p.dsn == name })
	if i < 0 {
		return errUnknownParam(name)
	}
	p := params[i]
	if seen[name] {
		return fmt.Errorf("livepool: DSN parameter %s is given twice", name)
	}
	seen[name] = true
	value, err := url.QueryUnescape(escaped)
	if err != nil || !hasValue || !p.set(c, value) || !p.ok(c) {
		return fmt.Errorf("livepool: DSN parameter %s=%s: takes %s", name, escaped, p.takes)
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
	i := slices.IndexFunc(params, func(p param) bool { return p.dsn == dsn })
	return params[i].field
}

func paramNames() []string {
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.dsn
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

// param is one setting: its names, what it takes, and how it is read and
// checked. The table of them is the one place that knows the DSN's words.
type param struct {
	dsn   string
	field string
	takes string
	set   func(c *Config, value string) bool
	ok    func(c *Config) bool
	show  func(c *Config) string
}

// maxConns is the most connections a server can be set to take (max_connections).
const maxConns = 100000

var params = []param{
	intParam("pool_size", "PoolSize", 0, maxConns, func(c *Config) *int { return &c.PoolSize }),
	intParam("pool_max_overflow", "MaxOverflow", -1, maxConns, func(c *Config) *int { return &c.MaxOverflow }),
	durationParam("pool_timeout", "PoolTimeout", false, func(c *Config) *time.Duration { return &c.PoolTimeout }),
	intParam("pool_min_idle", "MinIdle", 0, maxConns, func(c *Config) *int { return &c.MinIdle }),
	durationParam("pool_idle_timeout", "IdleTimeout", false, func(c *Config) *time.Duration { return &c.IdleTimeout }),
	recycleParam,
	jitterParam,
	wordParam("pool_pre_ping", "PrePing", prePingNames, func(c *Config) *PrePing { return &c.PrePing }),
	durationParam("pool_ping_after", "PingAfter", false, func(c *Config) *time.Duration { return &c.PingAfter }),
	durationParam("pool_ping_timeout", "PingTimeout", true, func(c *Config) *time.Duration { return &c.PingTimeout }),
	durationParam("pool_keepalive", "KeepAlive", false, func(c *Config) *time.Duration { return &c.KeepAlive }),
	durationParam("pool_hold_limit", "HoldLimit", false, func(c *Config) *time.Duration { return &c.HoldLimit }),
	durationParam("pool_connect_timeout", "ConnectTimeout", true, func(c *Config) *time.Duration { return &c.ConnectTimeout }),
	intParam("pool_connect_limit", "ConnectLimit", 1, maxConns, func(c *Config) *int { return &c.ConnectLimit }),
	durationParam("pool_outage_wait", "OutageWait", false, func(c *Config) *time.Duration { return &c.OutageWait }),
	durationParam("pool_commit_timeout", "CommitTimeout", true, func(c *Config) *time.Duration { return &c.CommitTimeout }),
	wordParam("pool_kill_abandoned", "KillAbandoned", boolNames, func(c *Config) *bool { return &c.KillAbandoned }),
	wordParam("pool_beacon", "Beacon", beaconNames, func(c *Config) *Beacon { return &c.Beacon }),
	durationParam("pool_stall_after", "StallAfter", false, func(c *Config) *time.Duration { return &c.StallAfter }),
	durationParam("pool_leak_after", "LeakAfter", false, func(c *Config) *time.Duration { return &c.LeakAfter }),
	intParam("pool_max_attempts", "MaxAttempts", 1, math.MaxInt32, func(c *Config) *int { return &c.MaxAttempts }),
	durationParam("pool_max_elapsed", "MaxElapsed", false, func(c *Config) *time.Duration { return &c.MaxElapsed }),
	tableParam,
}

func intParam(dsn, field string, low, high int, at func(*Config) *int) param {
	return param{
		dsn: dsn, field: field,
		takes: fmt.Sprintf("a whole number from %d to %d", low, high),
		set: func(c *Config, value string) (ok bool) {
			n, err := strconv.Atoi(value)
			*at(c) = n
			return err == nil
		},
		ok:   func(c *Config) bool { return *at(c) >= low && *at(c) <= high },
		show: func(c *Config) string { return strconv.Itoa(*at(c)) },
	}
}

func durationParam(dsn, field string, positive bool, at func(*Config) *time.Duration) param {
	takes := "a duration of 0 or more, such as 500ms, 1h or 3600 (seconds)"
	if positive {
		takes = "a duration above 0, such as 500ms, 5s or 10 (seconds)"
	}
	return param{
		dsn: dsn, field: field, takes: takes,
		set: func(c *Config, value string) bool {
			d, err := parseDuration(value)
			*at(c) = d
			return err == nil
		},
		ok:   func(c *Config) bool { return *at(c) > 0 || *at(c) == 0 && !positive },
		show: func(c *Config) string { return at(c).String() },
	}
}

// recycleParam takes SQLAlchemy's -1, too, for no limit.
var recycleParam = func() param {
	p := durationParam("pool_recycle", "Recycle", false, func(c *Config) *time.Duration { return &c.Recycle })
	set := p.set
	p.set = func(c *Config, value string) bool {
		if value == "-1" {
			value = "0"
		}
		return set(c, value)
	}
	return p
}()

// parseDuration reads a Go duration or plain seconds.
func parseDuration(value string) (time.Duration, error) {
	if strings.Trim(value, "0123456789.+-") == "" {
		value += "s"
	}
	return time.ParseDuration(value)
}

func wordParam[T comparable](dsn, field string, words []word[T], at func(*Config) *T) param {
	names := make([]string, len(words))
	for i, w := range words {
		names[i] = w.name
	}
	return param{
		dsn: dsn, field: field,
		takes: "one of " + strings.Join(names, ", "),
		set: func(c *Config, value string) bool {
			for _, w := range words {
				if strings.EqualFold(w.name, value) { // True, as in Python, TRUE, as the driver takes it
					*at(c) = w.value
					return true
				}
			}
			return false
		},
		ok: func(c *Config) bool {
			return slices.ContainsFunc(words, func(w word[T]) bool { return w.value == *at(c) })
		},
		show: func(c *Config) string { return fmt.Sprint(*at(c)) },
	}
}

var boolNames = []word[bool]{{"true", true}, {"false", false}, {"1", true}, {"0", false}, {"on", true}, {"off", false}}

var jitterParam = param{
	dsn: "pool_recycle_jitter", field: "RecycleJitter",
	takes: "a number from 0 to 1: the share of Recycle by which an age limit may be cut",
	set: func(c *Config, value string) (ok bool) {
		var err error
		c.RecycleJitter, err = strconv.ParseFloat(value, 64)
		return err == nil
	},
	ok:   func(c *Config) bool { return c.RecycleJitter >= 0 && c.RecycleJitter <= 1 },
	show: func(c *Config) string { return strconv.FormatFloat(c.RecycleJitter, 'g', -1, 64) },
}

// tableName keeps the name free of anything that would need quoting, because
// it becomes part of statements.
var tableName = regexp.MustCompile(`^[A-Za-z0-9_$]{1,64}(\.[A-Za-z0-9_$]{1,64})?$`)

var tableParam = param{
	dsn: "pool_commit_table", field: "CommitTable",
	takes: "a table name of letters, digits, _ and $, or schema.table",
	set:   func(c *Config, value string) bool { c.CommitTable = value; return true },
	ok:    func(c *Config) bool { return tableName.MatchString(c.CommitTable) },
	show:  func(c *Config) string { return strconv.Quote(c.CommitTable) },
}
