package proclist

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/trace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newEnv is what a test's Reaper or Stalls is given: without a Side, and with whatever is
// to be done in the background left to the test.
func newEnv(t *testing.T) *Env {
	clk := clock.New()
	t.Cleanup(clk.Close)
	return &Env{Ctx: t.Context(), Clock: clk, Log: slog.New(slog.DiscardHandler), Addr: "the database", PingTimeout: time.Second, Counters: new(Counters), Trace: func(trace.Event) {},
		OpenSide: func(context.Context) (*Side, error) { return nil, io.EOF }, Spawn: func(func()) bool { return true }}
}

// fakeProcesslist is a server as a connection beside the pool sees it: its threads and its
// named locks. What it says of a thread may change from look to look.
type fakeProcesslist struct {
	threads  []fakeThread
	locks    map[string]string // who holds them
	commands []string          // the commands of all threads, and their states after a comma, look by look; "" is no answer
	sent     []string          // what else was sent
	view     []string          // what it shows of the connection itself; nil is a refusal
	uptime   string            // in seconds
	execErrs []error           // what comes of that, in turn; nil and the end of it are success
}

type fakeThread struct{ id, user, host string }

// open opens a connection to it, which shows that command of all threads.
func (t *fakeProcesslist) open(command string) *driverconn.Conn {
	c := driverconn.New(&fakeSideConn{fakeProcesslist: t, command: command})
	return &c
}

// openSide is the beginning of a look.
func (t *fakeProcesslist) openSide(context.Context) (*Side, error) {
	look := t.commands[0]
	t.commands = t.commands[1:]
	if look == "" {
		return nil, io.EOF
	}
	return &Side{Conn: t.open(look), Close: func(error) {}}, nil
}

// fakeSideConn answers what a side connection asks.
type fakeSideConn struct {
	*fakeProcesslist
	command string
}

func (c *fakeSideConn) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("fakeSideConn: no statements")
}
func (c *fakeSideConn) Begin() (driver.Tx, error) {
	return nil, errors.New("fakeSideConn: no transactions")
}
func (c *fakeSideConn) Close() error { return nil }

func (c *fakeSideConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	c.sent = append(c.sent, query)
	if len(c.execErrs) > 0 {
		err := c.execErrs[0]
		c.execErrs = c.execErrs[1:]
		return driver.ResultNoRows, err
	}
	return driver.ResultNoRows, nil
}

var (
	lockQuery = regexp.MustCompile(`IS_USED_LOCK\('(.*?)'\)`)
	idsQuery  = regexp.MustCompile(`ID IN \((.*)\)`)
)

func (c *fakeSideConn) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	a := &fakeRows{}
	switch {
	case query == viewQuery && c.view != nil:
		return a.add(c.view...), nil
	case strings.Contains(query, "Uptime"):
		return a.add("Uptime", c.uptime), nil
	}
	if locks := lockQuery.FindAllStringSubmatch(query, -1); locks != nil {
		row := make([]driver.Value, len(locks))
		for i, m := range locks {
			if holder := c.locks[m[1]]; holder != "" {
				row[i] = []byte(holder)
			}
		}
		a.rows = append(a.rows, row)
		return a, nil
	}
	ids := idsQuery.FindStringSubmatch(query)
	if ids == nil {
		return nil, &mysql.MySQLError{Number: 1064, Message: "it does not say who it is"}
	}
	for _, t := range c.threads {
		if slices.Contains(strings.Split(ids[1], ", "), t.id) {
			command, state, _ := strings.Cut(c.command, ", ")
			a.add(t.id, t.user, t.host, command, state)
		}
	}
	return a, nil
}

// fakeRows is a result.
type fakeRows struct{ rows [][]driver.Value }

func (a *fakeRows) add(values ...string) *fakeRows {
	row := make([]driver.Value, len(values))
	for i, v := range values {
		row[i] = []byte(v)
	}
	a.rows = append(a.rows, row)
	return a
}

func (a *fakeRows) Columns() []string {
	if len(a.rows) == 0 {
		return nil
	}
	return make([]string, len(a.rows[0]))
}
func (a *fakeRows) Close() error { return nil }
func (a *fakeRows) Next(dest []driver.Value) error {
	if len(a.rows) == 0 {
		return io.EOF
	}
	copy(dest, a.rows[0])
	a.rows = a.rows[1:]
	return nil
}

// addrConn is a net.Conn that leads from one address to another.
type addrConn struct {
	net.Conn
	from, to net.Addr
}

func (r addrConn) LocalAddr() net.Addr  { return r.from }
func (r addrConn) RemoteAddr() net.Addr { return r.to }
func (r addrConn) Close() error         { return nil }

func tcpAddr(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }

func serverErrorNumber(number uint16) error { return &mysql.MySQLError{Number: number} }
