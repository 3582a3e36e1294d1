// dsn.go reads livepool's settings out of the driver's DSN, and finds the
// parameters that look like one of them but are none.

package livepool

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/go-sql-driver/mysql"
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
	if p := closestParam(name); p != "" {
		closest = "did you mean " + p + "? "
	}
	return fmt.Errorf("livepool: unknown DSN parameter %s; %sknown are %s", name, closest, knownParams())
}

// misplacedParams finds, among the parameters that the driver would set as variables of
// the server, those that were meant for livepool: misspelt, or by the name that
// another pool has for them.
func (c *Config) misplacedParams() error {
	if c.MySQL == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.MySQL.Params)) {
		switch p := closestParam(name); {
		case p != "" && p == name:
			return fmt.Errorf("livepool: Config.MySQL.Params has %s: set Config.%s, or have livepool.ParseDSN read the DSN", name, fieldOf(p))
		case p != "", strings.HasPrefix(normalize(name), "pool"):
			return errUnknownParam(name)
		}
	}
	return nil
}

func fieldOf(dsn string) string {
	i := slices.IndexFunc(params, func(p param) bool { return p.dsn == dsn })
	return params[i].field
}

// normalize is what is left of a name that is written in another way: lower case,
// without underscores and the like.
func normalize(name string) string {
	if plain, err := url.QueryUnescape(name); err == nil {
		name = plain
	}
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r == '.' || r == ' ' {
			return -1
		}
		return unicode.ToLower(r)
	}, name)
}

// closestParam is the parameter that was meant by name, "" if none is like it.
func closestParam(name string) string {
	squashed := normalize(name)
	for _, p := range params {
		if is := normalize(p.dsn); squashed == is || squashed == strings.TrimPrefix(is, "pool") {
			return p.dsn
		}
	}
	if p, ok := otherPoolsNames[squashed]; ok {
		return p
	}
	for _, p := range params {
		if strings.HasPrefix(squashed, "pool") && isOneEdit(squashed, normalize(p.dsn)) {
			return p.dsn
		}
	}
	return ""
}

// isOneEdit says whether two names differ by one character that was added, left
// out, or mistaken.
func isOneEdit(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) == len(b) {
		return i < len(a) && a[i+1:] == b[i+1:]
	}
	return a[i:] == b[i+1:]
}

// otherPoolsNames are the words of database/sql, SQLAlchemy, HikariCP and pgxpool
// for what livepool has, squashed.
var otherPoolsNames = map[string]string{
	"maxopenconns": "pool_size", "setmaxopenconns": "pool_size", "maxopenconnections": "pool_size",
	"maxidleconns": "pool_size", "setmaxidleconns": "pool_size", "maxidleconnections": "pool_size",
	"maximumpoolsize": "pool_size", "maxpoolsize": "pool_size", "maxconns": "pool_size", "poolmaxconns": "pool_size",
	"connmaxlifetime": "pool_recycle", "setconnmaxlifetime": "pool_recycle", "maxlifetime": "pool_recycle",
	"maxconnlifetime": "pool_recycle", "poolmaxconnlifetime": "pool_recycle",
	"maxconnlifetimejitter": "pool_recycle_jitter", "poolmaxconnlifetimejitter": "pool_recycle_jitter",
	"connmaxidletime": "pool_idle_timeout", "setconnmaxidletime": "pool_idle_timeout", "maxidletime": "pool_idle_timeout",
	"maxconnidletime": "pool_idle_timeout", "poolmaxconnidletime": "pool_idle_timeout",
	"minimumidle": "pool_min_idle", "minidleconns": "pool_min_idle", "minconns": "pool_min_idle",
	"poolminconns": "pool_min_idle", "poolminidleconns": "pool_min_idle",
	"connectiontimeout": "pool_timeout", "acquiretimeout": "pool_timeout",
	"keepalivetime": "pool_keepalive", "healthcheckperiod": "pool_keepalive", "poolhealthcheckperiod": "pool_keepalive",
	"leakdetectionthreshold": "pool_leak_after", "validationtimeout": "pool_ping_timeout",
	"testonborrow": "pool_pre_ping", "maxretries": "pool_max_attempts",
}

func knownParams() string {
	names := make([]string, len(params))
	for i, p := range params {
		names[i] = p.dsn
	}
	return strings.Join(names, ", ")
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
