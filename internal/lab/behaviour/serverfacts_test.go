package behaviour_test

// What is known of a server is known of that one: an address may lead to another
// tomorrow, with other settings.

import (
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// An address leads to a server and then to another one, on which a lock wait that
// is too long ends the transaction, or the other way round. A transaction that
// goes on after it is committed whole or not at all.
func TestLockWaitOnAnotherServerOfTheAddress(t *testing.T) {
	onEachServer(t, func(t *testing.T, spares *server.Server) {
		ends := orphanServer(t, spares.Kind(), "--innodb-rollback-on-timeout")
		for _, s := range []*server.Server{spares, ends} {
			if err := s.SetGlobal("innodb_lock_wait_timeout", 1); err != nil {
				t.Fatal(err)
			}
		}
		for _, tt := range []struct {
			name          string
			first, second *server.Server
		}{{"it ends the transaction", spares, ends}, {"it ends the statement", ends, spares}} {
			t.Run(tt.name, func(t *testing.T) {
				px := proxyTo(t, tt.first)
				p := open(t, tt.first.DSNVia(px.Addr()), "")
				wait := func(v int) error {
					tx, err := p.Begin()
					if err != nil {
						t.Fatal(err)
					}
					defer tx.Rollback()
					if _, err := tx.Exec("INSERT INTO t (v) VALUES (?)", v); err != nil {
						t.Fatal(err)
					}
					if _, err := tx.Exec("UPDATE account SET balance = 0 WHERE id = 99"); !labtest.IsServerError(err, 1205) {
						t.Fatalf("%v, want 1205", err)
					}
					if _, err := tx.Exec("INSERT INTO t (v) VALUES (?)", v); err != nil {
						return err
					}
					return tx.Commit()
				}
				_ = wait(1) // gets to know the first
				px.SetUpstream(tt.second.Addr())
				p.Recycle()
				err := wait(2)
				rows := count(t, tt.second, "t WHERE v = 2")
				t.Logf("%d of 2 rows, %v", rows, err)
				switch tt.second {
				case ends:
					if !errors.Is(err, livepool.ErrPoisoned) || rows != 0 {
						t.Error("want none, and ErrPoisoned")
					}
				case spares:
					if err != nil || rows != 2 {
						t.Error("want both, and nil")
					}
				}
			})
		}
	})
}

// An address leads to a server and then to another one that closes idle
// connections much sooner, while some lead to each. All live on.
func TestIdleTimeoutOfAnotherServerOfTheAddress(t *testing.T) {
	onEachServer(t, func(t *testing.T, patient *server.Server) {
		hasty := servertest.Run(t, patient.Kind())
		if err := hasty.SetGlobal("wait_timeout", 2); err != nil {
			t.Fatal(err)
		}
		if err := patient.SetGlobal("wait_timeout", 600); err != nil {
			t.Fatal(err)
		}
		var all parallel
		defer all.wg.Wait()
		for _, tt := range []struct {
			name          string
			first, second *server.Server
		}{{"the second is hasty", patient, hasty}, {"the first is hasty", hasty, patient}} {
			all.run(t, tt.name, func(t *testing.T) {
				px := proxyTo(t, tt.first)
				p, log := openLogged(t, tt.first.DSNVia(px.Addr()), "pool_keepalive=60s")
				var held []*sql.Conn
				hold := func(n int) {
					for range n {
						c, _ := takeConn(t, p)
						held = append(held, c)
					}
				}
				hold(2)
				px.SetUpstream(tt.second.Addr())
				hold(2)
				fakedb.GiveBack(held)
				before, st := idsOf(t, p, 4), p.Stats()
				stood := longestStop(6 * time.Second) // nobody calls
				after, now := idsOf(t, p, 4), p.Stats()
				kept := now.KeptAlive - st.KeptAlive
				t.Logf("%d pings; stood still for %s at most", kept, roundMS(stood))
				if stood < 500*time.Millisecond && (!slices.Equal(before, after) || now.Deaths != st.Deaths) {
					t.Errorf("connections %v became %v, %d deaths", before, after, now.Deaths-st.Deaths)
				}
				if kept == 0 || kept > 2*20 { // two connections, each 0.67 s
					t.Errorf("%d pings", kept)
				}
				if n := len(log.LinesWith("wait_timeout")); n != 1 {
					t.Errorf("%d warnings, want one, of the hasty server", n)
				}
			})
		}
	})
}
