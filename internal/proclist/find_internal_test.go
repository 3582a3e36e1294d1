package proclist

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/wire"
)

// A thread of the server is found, and killed, with proof only: the one that has
// the number of the handshake may be another's.
func TestThreadIsKilledWithProofOnly(t *testing.T) {
	r := &Reaper{Env: newEnv(t)}
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
			w := &Thread{Conn: &wire.Conn{Conn: addrConn{from: tcpAddr("10.0.0.2", 5001), to: server}}, Beacon: tt.beacon, Identity: &Identity{Server: tt.on, ConnectionID: "7", User: tt.user}}
			w.Handshake.ThreadID = 7
			if tt.user == "" {
				w.Identity.User = "app"
			}
			if tt.on == "" {
				w.Identity.Server = "home"
			}
			if tt.to == nil {
				tt.to = server
			}
			s := &Side{direct: !tt.indirect, serverStarted: -time.Hour}
			s.identity, s.view = &Identity{Server: "home"}, View{user: "app", host: "10.0.0.2"}
			if tt.hidden {
				s.view = View{}
			}
			there := &fakeProcesslist{threads: tt.threads, locks: map[string]string{"b": tt.holder}}
			s.Conn = there.open("Query")
			s.Wire = &wire.Conn{Conn: addrConn{from: tcpAddr("10.0.0.2", 6000), to: tt.to}}
			if tt.restarted {
				s.serverStarted = time.Hour
			}
			if got, err := s.findThreads(t.Context(), time.Second, []*Thread{w}); err != nil || got[0].threadState != tt.want {
				t.Errorf("found %v, %v, want %d", got, err, tt.want)
			}
			var tally [outcomes]int
			o := &Orphan{thread: w, wrongServerTries: maxWrongServerTries, done: make(chan struct{})}
			left, _, err := r.killBatch(s, []*Orphan{o}, &tally)
			if err != nil || left != nil || len(there.sent) > 0 != (tt.want == threadRunning || tt.want == threadHidden) || (tally[outcomeAlreadyGone] == 1) != (tt.want == threadNotFound) {
				t.Errorf("sent %q, %v, left %v: %v", there.sent, err, left, tally)
			}
		})
	}
}

// A Side is direct where the server shows its own port, and knows since when the server
// runs. One whose server refuses to say is of use all the same.
func TestWhatASideKnowsOfItsServer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		view   []string // "" for a refusal
		uptime string
		direct bool
		user   string
		since  time.Duration // before now; 0: it is not known
	}{
		{"its own port", []string{"app", "10.0.0.2:6000"}, "60", true, "app", time.Minute},
		{"its own port, of MariaDB", []string{"app", "10.0.0.2:6000", "ON"}, "60", true, "app", time.Minute},
		{"another port", []string{"app", "10.0.0.2:6001"}, "60", false, "app", time.Minute},
		{"a socket, which has no port", []string{"app", "localhost"}, "60", false, "app", time.Minute},
		{"it is not shown itself", []string{"", ""}, "60", false, "", time.Minute},
		{"an uptime that is none", []string{"app", "10.0.0.2:6000"}, "long", true, "app", 0},
		{"a refusal", nil, "60", false, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				env := newEnv(t)
				server := &fakeProcesslist{view: tt.view, uptime: tt.uptime}
				s := &Side{Conn: server.open(""), Wire: &wire.Conn{Conn: addrConn{from: tcpAddr("10.0.0.2", 6000)}}}
				err := s.Identify(t.Context(), env.Clock, &Identity{ConnectionID: "0"})
				if (err == nil) != (tt.view != nil) || s.direct != tt.direct || s.view.user != tt.user || s.view.InCluster != (len(tt.view) == 3) {
					t.Errorf("direct is %v, view %+v, error %v", s.direct, s.view, err)
				}
				if since := env.Clock.Now() - tt.since; s.serverStarted != since && tt.since != 0 || tt.since == 0 && s.serverStarted != -clock.Never {
					t.Errorf("the server runs since %s", s.serverStarted)
				}
			})
		})
	}
}
