package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/wire"
)

// fakeProcesslist is a server as a connection beside the pool sees it: its threads and its
// named locks. What it says of a thread may change from look to look.
type fakeProcesslist struct {
	threads  []fakeThread
	locks    map[string]string // who holds them
	commands []string          // the commands of all threads, look by look; "" is no answer
	sent     []string          // what else was sent
	execErrs []error           // what comes of that, in turn; nil and the end of it are success
}

type fakeThread struct{ id, user, host string }

func (t *fakeProcesslist) Driver() driver.Driver { return nil }

// Connect is the beginning of a look.
func (t *fakeProcesslist) Connect(context.Context) (driver.Conn, error) {
	look := t.commands[0]
	t.commands = t.commands[1:]
	if look == "" {
		return nil, io.EOF
	}
	return &fakeSideConn{fakeProcesslist: t, command: look}, nil
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
			a.rows = append(a.rows, []driver.Value{[]byte(t.id), []byte(t.user), []byte(t.host), []byte(c.command)})
		}
	}
	return a, nil
}

// fakeRows is a result.
type fakeRows struct{ rows [][]driver.Value }

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

// A thread of the server is found, and killed, with proof only: the one that has
// the number of the handshake may be another's.
func TestThreadIsKilledWithProofOnly(t *testing.T) {
	cfg := defaults()
	ctr, err := New(fakeConnector{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ctr.Close()
	server := tcpAddr("10.0.0.1", 3306)
	ours := fakeThread{"7", "app", "10.0.0.2:5001"}
	for _, tt := range []struct {
		name      string
		threads   []fakeThread
		indirect  bool // the server sees other ports than ours
		to        net.Addr
		beacon    string // "" for none
		holder    string // of the beacon
		on        string // which server, "" for the one that is asked
		user      string // as whom it logged in, "" for the one who asks
		restarted bool   // the server was, since the connection was opened
		hidden    bool   // the one who asks is not even shown itself
		want      threadState
	}{
		{name: "ours", threads: []fakeThread{ours}, want: threadRunning},
		{name: "there is none", want: threadNotFound},
		{name: "another's port", threads: []fakeThread{{"7", "app", "10.0.0.2:5002"}}, want: threadNotFound},
		{name: "another's address", threads: []fakeThread{{"7", "app", "10.0.0.3:5001"}}, want: threadNotFound},
		{name: "another user", threads: []fakeThread{{"7", "root", "10.0.0.2:5001"}}, want: threadNotFound},
		{name: "the server sees other ports", threads: []fakeThread{ours}, indirect: true, want: threadUnknown},
		{name: "by another way", threads: []fakeThread{ours}, to: tcpAddr("10.0.0.9", 3306), want: threadUnknown},
		{name: "its beacon", threads: []fakeThread{{"21", "app", "proxy:1"}}, beacon: "b", holder: "21", want: threadRunning},
		{name: "its beacon, and another of its number", threads: []fakeThread{{"7", "root", "x:1"}}, beacon: "b", holder: "21", want: threadHidden},
		{name: "its beacon was taken on another server", threads: []fakeThread{}, beacon: "b", on: "away", want: threadOnOtherServer},
		{name: "its beacon is out", threads: []fakeThread{ours}, beacon: "b", want: threadUnknown},
		{name: "the server was restarted, and another has its number", threads: []fakeThread{ours}, restarted: true, want: threadNotFound},
		{name: "the server was restarted, and another has the number of its beacon's", threads: []fakeThread{ours}, restarted: true, beacon: "b", want: threadNotFound},
		{name: "another server", threads: []fakeThread{ours}, on: "away", want: threadOnOtherServer},
		{name: "another user's, who is not shown to this one", user: "renamed", want: threadUnknown},
		{name: "another user's, who is", threads: []fakeThread{{"7", "renamed", "10.0.0.2:5001"}}, user: "renamed", want: threadRunning},
		{name: "users like this one are not shown", hidden: true, want: threadUnknown},
		{name: "users like this one are not shown, and its beacon is out", hidden: true, beacon: "b", want: threadUnknown},
		{name: "another user's, and its beacon is out", user: "renamed", beacon: "b", want: threadUnknown},
		{name: "it is gone, and its beacon with it", threads: []fakeThread{}, beacon: "b", want: threadNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &serverSide{Conn: &wire.Conn{Conn: addrConn{from: tcpAddr("10.0.0.2", 5001), to: server}}, beacon: tt.beacon, facts: &serverFacts{server: tt.on, connectionID: "7", user: tt.user}}
			w.Handshake.ThreadID = 7
			if tt.user == "" {
				w.facts.user = "app"
			}
			if tt.on == "" {
				w.facts.server = "home"
			}
			if tt.to == nil {
				tt.to = server
			}
			s := &side{ctr: ctr, direct: !tt.indirect, serverStarted: -time.Hour}
			s.facts, s.view = &serverFacts{server: "home"}, clientView{user: "app", host: "10.0.0.2"}
			if tt.hidden {
				s.view = clientView{}
			}
			there := &fakeProcesslist{threads: tt.threads, locks: map[string]string{"b": tt.holder}}
			s.link.driverConn = driverconn.New(&fakeSideConn{there, "Query"})
			s.link.wire = &wire.Conn{Conn: addrConn{from: tcpAddr("10.0.0.2", 6000), to: tt.to}}
			if tt.restarted {
				s.serverStarted = time.Hour
			}
			if got, err := s.findThreads(t.Context(), []*serverSide{w}); err != nil || got[0].threadState != tt.want {
				t.Errorf("found %v, %v, want %d", got, err, tt.want)
			}
			var tally [outcomes]int
			o := &orphan{conn: w, wrongServerTries: maxWrongServerTries, done: make(chan struct{})}
			left, _, err := s.killBatch([]*orphan{o}, &tally)
			if err != nil || left != nil || len(there.sent) > 0 != (tt.want == threadRunning || tt.want == threadHidden) || (tally[outcomeAlreadyGone] == 1) != (tt.want == threadNotFound) {
				t.Errorf("sent %q, %v, left %v: %v", there.sent, err, left, tally)
			}
		})
	}
}

// A connection that waits for its reply is given up only if the server says, at
// two looks in a row, that it does nothing for it. A server that does not answer
// has said nothing.
func TestConnectionIsGivenUpByTwoLooksInARow(t *testing.T) {
	for _, tt := range []struct {
		name  string
		looks []string
		dead  bool
	}{
		{"idle twice", []string{"Sleep", "Sleep"}, true},
		{"idle once", []string{"Sleep"}, false},
		{"at work", []string{"Query", "Query", "Query"}, false},
		{"idle, at work, idle", []string{"Sleep", "Query", "Sleep"}, false},
		{"no answer", []string{"", "", ""}, false},
		{"idle, and then no answer", []string{"Sleep", "", ""}, false},
		{"idle, no answer, idle", []string{"Sleep", "", "Sleep"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := defaults()
			ctr, err := New(&fakeProcesslist{threads: []fakeThread{{"21", "app", "x"}}, locks: map[string]string{"b": "21"}, commands: tt.looks}, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer ctr.Close()
			w := &serverSide{Conn: &wire.Conn{Conn: addrConn{}}, beacon: "b", facts: &serverFacts{connectionID: "0"}}
			w.Reads.Store(1)
			w.stallWatch.reads = 1
			for range tt.looks {
				ctr.Outage.Connected() // and the outage is over that a look without an answer began
				(&maintainer{ctr: ctr}).checkStalls([]*serverSide{w})
			}
			if dead := w.AbortErr.Load() != nil; dead != tt.dead {
				t.Errorf("given up: %v, want %v", dead, tt.dead)
			}
		})
	}
}

func serverErrorNumber(number uint16) error { return &mysql.MySQLError{Number: number} }
