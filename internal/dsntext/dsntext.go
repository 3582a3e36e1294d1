// Package dsntext splits a DSN into the pool's parameters and the driver's part. None of
// its errors holds the password, wherever a mistake in the DSN has put it. It knows no
// parameter by name. The root calls it at Open.
package dsntext

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// Parse has the driver read its part of a DSN, and returns the rest: the addresses, if there
// are several, of which the driver reads the first, and the name=value pairs of pool_*
// parameters.
func Parse(dsn string) (driver *mysql.Config, addrs, ours []string, err error) {
	ours, theirs := split(dsn)
	addrs, theirs, err = splitHosts(theirs)
	if err == nil {
		driver, err = parseDriver(theirs)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	return driver, addrs, ours, nil
}

// address finds the network and the address of a DSN, up to the slash before the database.
var address = regexp.MustCompile(`(?s)^(.*@|)(tcp|tcp4|tcp6|unix|)\(([^()@]*)\)$`)

// splitHosts takes all addresses but the first out of a DSN, and returns all of them; nil if
// there is one. That of a socket may have a comma in it.
func splitHosts(dsn string) (addrs []string, theirs string, err error) {
	slash := strings.LastIndexByte(dsn, '/')
	if slash < 0 {
		return nil, dsn, nil
	}
	m := address.FindStringSubmatch(dsn[:slash])
	if m == nil {
		return nil, dsn, nil
	}
	separator, lead := ",", ""
	if m[2] == "unix" {
		separator, lead = ",/", "/"
	}
	for i, addr := range strings.Split(m[3], separator) {
		if i > 0 {
			addr = lead + addr
		}
		addrs = append(addrs, addr)
	}
	if len(addrs) == 1 {
		return nil, dsn, nil
	}
	if addrs, err = Hosts(m[2], addrs); err != nil {
		return nil, "", err
	}
	return addrs, m[1] + m[2] + "(" + addrs[0] + ")" + dsn[slash:], nil
}

// Hosts returns the addresses with their ports, which is the driver's default where there is
// none; or says what is wrong with them.
func Hosts(network string, addrs []string) ([]string, error) {
	all, isTCP := make([]string, len(addrs)), slices.Contains([]string{"", "tcp", "tcp4", "tcp6"}, network)
	for i, addr := range addrs {
		if isTCP {
			if name := strings.Trim(addr, "[]"); !strings.Contains(name, ":") || len(name) == len(addr)-2 {
				addr = net.JoinHostPort(name, "3306")
			}
			if !isHostPort(addr) {
				return nil, fmt.Errorf("livepool: host %d of %d (Config.Addrs, or the list in the DSN) is no host:port", i+1, len(addrs))
			}
		}
		isSame := func(other string) bool { return other == addr || isTCP && strings.EqualFold(other, addr) }
		if addr == "" || slices.ContainsFunc(all[:i], isSame) {
			return nil, fmt.Errorf("livepool: host %d of %d (Config.Addrs, or the list in the DSN) is empty, or there twice", i+1, len(addrs))
		}
		all[i] = addr
	}
	return all, nil
}

// isHostPort says whether an address can be one. A host that is mistyped would be missed only when
// the others have failed.
func isHostPort(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" || strings.ContainsAny(host, " \t/") {
		return false
	}
	n, err := net.DefaultResolver.LookupPort(context.Background(), "tcp", port)
	return err == nil && n > 0
}

// HidePassword replaces an error about a parameter of the DSN if what looks like one may
// be a piece of the password; otherwise it returns err.
func HidePassword(dsn string, err error) error {
	if err != nil && mayHoldPassword(dsn[strings.LastIndexByte(dsn, '/')+1:]) {
		return errUnreadable
	}
	return err
}

// errUnreadable quotes nothing. With a slash, a bracket or the @ astray, what
// the driver takes for a network or a parameter is a piece of the password.
var errUnreadable = errors.New("livepool: the DSN cannot be read; it has the form user:password@tcp(host:port)/database?name=value, " +
	"where names and values are URL-escaped (/ is %2F, @ is %40) and the slash before the database is never left out " +
	"(it is not quoted here because it may hold the password)")

// mayHoldPassword says whether what follows a DSN's last slash has signs of what
// belongs before it.
func mayHoldPassword(tail string) bool {
	return strings.ContainsAny(tail, "@()") || strings.Contains(tail, "%40")
}

// split takes the pool_* parameters out of a DSN. The parameters begin at
// the first question mark after the last slash, as in the driver, which refuses
// a DSN without a slash.
func split(dsn string) (ours []string, theirs string) {
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

// networkName is what a network can be called: what a DSN with its @ astray has
// in this place is no such name.
var networkName = regexp.MustCompile(`^[A-Za-z0-9_.+-]*$`)

// parseDriver lets the driver read its part. Its errors quote what they
// could not read; so the two parts are tried apart, and only an error about
// parameters is passed on.
func parseDriver(dsn string) (*mysql.Config, error) {
	cfg, err := SafeParse(dsn)
	if err == nil {
		if !networkName.MatchString(cfg.Net) || strings.ContainsAny(cfg.Addr, "@()") && cfg.Net != "unix" {
			return nil, errUnreadable
		}
		return cfg, nil
	}
	base, query, _ := strings.Cut(dsn[strings.LastIndexByte(dsn, '/')+1:], "?")
	_, baseErr := SafeParse(dsn[:strings.LastIndexByte(dsn, '/')+1] + base)
	if baseErr != nil || mayHoldPassword(query) {
		return nil, errUnreadable
	}
	return nil, fmt.Errorf("livepool: the driver refuses a parameter of the DSN: %w", err)
}

// SafeParse is the driver's ParseDSN, which panics on a parameter it no longer
// has (strict).
func SafeParse(dsn string) (cfg *mysql.Config, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return mysql.ParseDSN(dsn)
}
