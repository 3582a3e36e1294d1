package livepool

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
)

// town is a server as a connection beside the pool sees it: its threads and its
// named locks. What it says of a thread may change from look to look.
type town struct {
	threads []thread
	locks   map[string]string // who holds them
	looks   []string          // the commands of all threads, look by look; "" is no answer
	sent    []string          // what else was sent
	refuses []error           // what comes of that, in turn; nil and the end of it are success
}

type thread struct{ id, user, host string }

func (t *town) Driver() driver.Driver { return nil }

// Connect is the beginning of a look.
func (t *town) Connect(context.Context) (driver.Conn, error) {
	look := t.looks[0]
	t.looks = t.looks[1:]
	if look == "" {
		return nil, io.EOF
	}
	return &clerk{town: t, command: look}, nil
}

// clerk answers what a side connection asks.
type clerk struct {
	*town
	command string
}

func (c *clerk) Prepare(string) (driver.Stmt, error) { return nil, errors.New("clerk: no statements") }
func (c *clerk) Begin() (driver.Tx, error)           { return nil, errors.New("clerk: no transactions") }
func (c *clerk) Close() error                        { return nil }

func (c *clerk) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	c.sent = append(c.sent, query)
	if len(c.refuses) > 0 {
		err := c.refuses[0]
		c.refuses = c.refuses[1:]
		return driver.ResultNoRows, err
	}
	return driver.ResultNoRows, nil
}

var (
	asksForLock = regexp.MustCompile(`IS_USED_LOCK\('(.*?)'\)`)
	asksForIDs  = regexp.MustCompile(`ID IN \((.*)\)`)
)

func (c *clerk) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	a := &answer{}
	if locks := asksForLock.FindAllStringSubmatch(query, -1); locks != nil {
		row := make([]driver.Value, len(locks))
		for i, m := range locks {
			if holder := c.locks[m[1]]; holder != "" {
				row[i] = []byte(holder)
			}
		}
		a.rows = append(a.rows, row)
		return a, nil
	}
	ids := asksForIDs.FindStringSubmatch(query)
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

// answer is a result.
type answer struct{ rows [][]driver.Value }

func (a *answer) Columns() []string {
	if len(a.rows) == 0 {
		return nil
	}
	return make([]string, len(a.rows[0]))
}
func (a *answer) Close() error { return nil }
func (a *answer) Next(dest []driver.Value) error {
	if len(a.rows) == 0 {
		return io.EOF
	}
	copy(dest, a.rows[0])
	a.rows = a.rows[1:]
	return nil
}

// route is a net.Conn that leads from one address to another.
type route struct {
	net.Conn
	from, to net.Addr
}

func (r route) LocalAddr() net.Addr  { return r.from }
func (r route) RemoteAddr() net.Addr { return r.to }
func (r route) Close() error         { return nil }

func tcp(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }

// A thread of the server is found, and killed, with proof only: the one that has
// the number of the handshake may be another's.
func TestThreadIsKilledWithProofOnly(t *testing.T) {
	cfg := defaults()
	ctr, err := newConnector(fakeConnector{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer ctr.Close()
	server := tcp("10.0.0.1", 3306)
	ours := thread{"7", "app", "10.0.0.2:5001"}
	for _, tt := range []struct {
		name      string
		threads   []thread
		indirect  bool // the server sees other ports than ours
		to        net.Addr
		beacon    string // "" for none
		holder    string // of the beacon
		on        string // which server, "" for the one that is asked
		user      string // as whom it logged in, "" for the one who asks
		restarted bool   // the server was, since the connection was opened
		hidden    bool   // the one who asks is not even shown itself
		want      finding
	}{
		{name: "ours", threads: []thread{ours}, want: working},
		{name: "there is none", want: gone},
		{name: "another's port", threads: []thread{{"7", "app", "10.0.0.2:5002"}}, want: gone},
		{name: "another's address", threads: []thread{{"7", "app", "10.0.0.3:5001"}}, want: gone},
		{name: "another user", threads: []thread{{"7", "root", "10.0.0.2:5001"}}, want: gone},
		{name: "the server sees other ports", threads: []thread{ours}, indirect: true, want: unproved},
		{name: "by another way", threads: []thread{ours}, to: tcp("10.0.0.9", 3306), want: unproved},
		{name: "its beacon", threads: []thread{{"21", "app", "proxy:1"}}, beacon: "b", holder: "21", want: working},
		{name: "its beacon, and another of its number", threads: []thread{{"7", "root", "x:1"}}, beacon: "b", holder: "21", want: unseen},
		{name: "its beacon was taken on another server", threads: []thread{}, beacon: "b", on: "away", want: elsewhere},
		{name: "its beacon is out", threads: []thread{ours}, beacon: "b", want: unproved},
		{name: "the server was restarted, and another has its number", threads: []thread{ours}, restarted: true, want: gone},
		{name: "the server was restarted, and another has the number of its beacon's", threads: []thread{ours}, restarted: true, beacon: "b", want: gone},
		{name: "another server", threads: []thread{ours}, on: "away", want: elsewhere},
		{name: "another user's, who is not shown to this one", user: "renamed", want: unproved},
		{name: "another user's, who is", threads: []thread{{"7", "renamed", "10.0.0.2:5001"}}, user: "renamed", want: working},
		{name: "users like this one are not shown", hidden: true, want: unproved},
		{name: "users like this one are not shown, and its beacon is out", hidden: true, beacon: "b", want: unproved},
		{name: "another user's, and its beacon is out", user: "renamed", beacon: "b", want: unproved},
		{name: "it is gone, and its beacon with it", threads: []thread{}, beacon: "b", want: gone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &site{wire: &wire{Conn: route{from: tcp("10.0.0.2", 5001), to: server}}, beacon: tt.beacon, facts: &serverFacts{server: tt.on, connectionID: "7", user: tt.user}}
			w.hello.threadID = 7
			if tt.user == "" {
				w.facts.user = "app"
			}
			if tt.on == "" {
				w.facts.server = "home"
			}
			if tt.to == nil {
				tt.to = server
			}
			s := &side{ctr: ctr, direct: !tt.indirect, started: -time.Hour}
			s.facts, s.seen = &serverFacts{server: "home"}, seen{user: "app", host: "10.0.0.2"}
			if tt.hidden {
				s.seen = seen{}
			}
			there := &town{threads: tt.threads, locks: map[string]string{"b": tt.holder}}
			s.l.inner = newInner(&clerk{there, "Query"})
			s.l.wire = &wire{Conn: route{from: tcp("10.0.0.2", 6000), to: tt.to}}
			if tt.restarted {
				s.started = time.Hour
			}
			if got, err := s.findAll(t.Context(), []*site{w}); err != nil || got[0].finding != tt.want {
				t.Errorf("found %v, %v, want %d", got, err, tt.want)
			}
			var tally [fates]int
			g := &ghost{w: w, tries: maxReapTries, done: make(chan struct{})}
			left, _, err := s.deal([]*ghost{g}, &tally)
			if err != nil || left != nil || len(there.sent) > 0 != (tt.want == working || tt.want == unseen) || (tally[fateGone] == 1) != (tt.want == gone) {
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
			ctr, err := newConnector(&town{threads: []thread{{"21", "app", "x"}}, locks: map[string]string{"b": "21"}, looks: tt.looks}, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer ctr.Close()
			w := &site{wire: &wire{Conn: route{}}, beacon: "b", facts: &serverFacts{connectionID: "0"}}
			w.reads.Store(1)
			w.vigil.read = 1
			for range tt.looks {
				ctr.connected() // and the outage is over that a look without an answer began
				(&maintainer{ctr: ctr}).lookUp([]*site{w})
			}
			if dead := w.condemned.Load() != nil; dead != tt.dead {
				t.Errorf("given up: %v, want %v", dead, tt.dead)
			}
		})
	}
}

func serverErrorNumber(number uint16) error { return &mysql.MySQLError{Number: number} }
