package behaviour_test

// What is left in from plain database/sql: SetMaxOpenConns and its like, called
// on the sql.DB of a pool.

import (
	"database/sql"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

const limitAdvice = "SetMaxOpenConns was called"

// The server sees no more than SetMaxOpenConns allows.
func TestServerSeesSetMaxOpenConns(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p, log := openLogged(t, s.DSN(), "pool_min_idle=4")
	labtest.Eventually(t, "four are ready", func() bool { return p.Stats().Idle == 4 })
	p.SetMaxOpenConns(3)
	seen := func() (n int) {
		if err := s.QueryRow("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER = '"+server.User+"'", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 3 {
		var held []*sql.Conn
		for range 3 {
			c, _ := takeConn(t, p)
			held = append(held, c)
		}
		labtest.Eventually(t, "the fourth is closed", func() bool { return seen() == 3 })
		for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if n := seen(); n > 3 {
				t.Fatalf("the server sees %d connections", n)
			}
		}
		fakedb.GiveBack(held)
	}
	if told := log.LinesWith(limitAdvice); len(told) != 1 {
		t.Errorf("told %q", told)
	}
}
