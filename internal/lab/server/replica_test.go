package server_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

const readOnlyError = 1290

// eachPair runs f as a subtest on a pair of each kind, with a table t.
func eachPair(t *testing.T, f func(t *testing.T, p *server.Pair)) {
	t.Helper()
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			begun := time.Now()
			p := servertest.RunPair(t, kind)
			t.Logf("started in %v", time.Since(begun))
			must(t, p.Primary().Exec("CREATE TABLE t (id INT PRIMARY KEY)"))
			f(t, p)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// insert adds a row on the primary.
func insert(t *testing.T, p *server.Pair, id int) {
	t.Helper()
	must(t, p.Primary().Exec("INSERT INTO t VALUES (?)", id))
}

// ids are the rows that a server has.
func ids(t *testing.T, s *server.Server) string {
	t.Helper()
	var list string
	must(t, s.QueryRow("SELECT COALESCE(GROUP_CONCAT(id ORDER BY id), '') FROM t", &list))
	return list
}

// wantOnAll checks the rows of all servers once the replicas have caught up.
func wantOnAll(t *testing.T, p *server.Pair, want string) {
	t.Helper()
	must(t, p.CatchUp(t.Context()))
	for i, s := range p.Servers() {
		if got := ids(t, s); got != want {
			t.Errorf("server %d after the primary has the rows %s, want %s", i, got, want)
		}
	}
}

func begin(t *testing.T, s *server.Server, statements ...string) *sql.Tx {
	t.Helper()
	tx, err := open(t, s.DSN()).Begin()
	must(t, err)
	for _, statement := range statements {
		_, err := tx.Exec(statement)
		must(t, err)
	}
	return tx
}

func TestAReplicaFollowsAndRefusesWrites(t *testing.T) {
	eachPair(t, func(t *testing.T, p *server.Pair) {
		insert(t, p, 1)
		wantOnAll(t, p, "1")
		for _, dsn := range []string{p.Replica().DSN(), p.Replica().AppDSN(p.Replica().Addr())} {
			if _, err := open(t, dsn).Exec("INSERT INTO t VALUES (2)"); number(err) != readOnlyError {
				t.Errorf("a write on the replica: %v", err)
			}
		}
		if list, err := p.Primary().Processes(); err != nil || len(list) != 0 {
			t.Errorf("nobody but the replica is connected, and the processes are %+v, %v", list, err)
		}
	})
}

func TestEachOfAPairIsAfterARestartWhatItWas(t *testing.T) {
	eachPair(t, func(t *testing.T, p *server.Pair) {
		for i, s := range []*server.Server{p.Primary(), p.Replica()} {
			begun := time.Now()
			must(t, s.Kill())
			must(t, s.Start())
			insert(t, p, i)
			wantOnAll(t, p, "0,1"[:2*i+1])
			t.Logf("replicates after %v", time.Since(begun))
			if _, err := open(t, p.Replica().DSN()).Exec("INSERT INTO t VALUES (100)"); number(err) != readOnlyError {
				t.Errorf("a write on the replica: %v", err)
			}
		}
	})
}

func TestASwitchInMidTransactionRefusesTheCommit(t *testing.T) {
	eachPair(t, func(t *testing.T, p *server.Pair) {
		insert(t, p, 1)
		old := p.Primary()
		tx := begin(t, old, "INSERT INTO t VALUES (2)")
		begun := time.Now()
		must(t, p.Switch(t.Context()))
		t.Logf("switched in %v", time.Since(begun))
		if p.Replica() != old {
			t.Fatal("the roles are as before")
		}
		if err := tx.Commit(); number(err) != readOnlyError {
			t.Errorf("COMMIT on the old primary: %v", err)
		}
		insert(t, p, 3)
		wantOnAll(t, p, "1,3")
		must(t, p.Switch(t.Context())) // and back
		if p.Primary() != old {
			t.Error("the second switch did not bring the roles back")
		}
		insert(t, p, 4)
		wantOnAll(t, p, "1,3,4")
	})
}

func TestASwitchThatAStatementHoldsUpChangesNothing(t *testing.T) {
	const lockWaitTimeout = 1205
	eachPair(t, func(t *testing.T, p *server.Pair) {
		insert(t, p, 1)
		s := p.Primary()
		tx := begin(t, s, "UPDATE t SET id = 10 WHERE id = 1")
		blocked := make(chan error, 1)
		go func() {
			_, err := open(t, s.DSN()).Exec("UPDATE t SET id = 11 WHERE id = 1 /* blocked */")
			blocked <- err
		}()
		eventually(t, "the statement is in flight", func() bool {
			list, err := s.Processes()
			return err == nil && strings.Contains(fmt.Sprint(list), "/* blocked */")
		})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begun := time.Now()
		if err := p.Switch(ctx); number(err) != lockWaitTimeout {
			t.Errorf("the switch: %v", err)
		}
		t.Logf("gave up after %v", time.Since(begun))
		must(t, tx.Commit())
		must(t, <-blocked)
		if p.Primary() != s {
			t.Error("the roles changed")
		}
		insert(t, p, 2)
		wantOnAll(t, p, "2,10")
	})
}

func TestPromoteAfterAKillAndBringTheOldPrimaryBack(t *testing.T) {
	eachPair(t, func(t *testing.T, p *server.Pair) {
		insert(t, p, 1)
		must(t, p.CatchUp(t.Context()))
		old := p.Primary()
		must(t, old.Kill())
		begun := time.Now()
		must(t, p.Promote(t.Context()))
		t.Logf("promoted in %v", time.Since(begun))
		if p.Replica() != old {
			t.Fatal("the roles are as before")
		}
		insert(t, p, 2)
		begun = time.Now()
		must(t, p.Rejoin(t.Context()))
		t.Logf("rejoined in %v", time.Since(begun))
		insert(t, p, 3)
		wantOnAll(t, p, "1,2,3")
		if _, err := open(t, old.DSN()).Exec("INSERT INTO t VALUES (4)"); number(err) != readOnlyError {
			t.Errorf("a write on the old primary: %v", err)
		}
	})
}

// diverge has the two change places while the primary is paused, and that then go on by
// itself: both have row 1, and only the old primary has row 2.
func diverge(t *testing.T, p *server.Pair) (old *server.Server) {
	t.Helper()
	insert(t, p, 1)
	must(t, p.CatchUp(t.Context()))
	old = p.Primary()
	must(t, old.Pause())
	must(t, p.Promote(t.Context()))
	must(t, old.Resume())
	must(t, old.Exec("INSERT INTO t VALUES (2)"))
	return old
}

// A paused primary looks dead and is not: it takes part again with what only it has.
func TestAPrimaryThatWentOnByItselfIsNotBroughtBack(t *testing.T) {
	eachPair(t, func(t *testing.T, p *server.Pair) {
		old := diverge(t, p)
		if err := p.Rejoin(t.Context()); err == nil || !strings.Contains(err.Error(), "never received") {
			t.Errorf("with nothing written to the new primary: %v", err)
		}
		for id := range 3 {
			insert(t, p, 10+id)
		}
		if err := p.Rejoin(t.Context()); err == nil || !strings.Contains(err.Error(), "never received") {
			t.Errorf("with more written to the new primary: %v", err)
		}
		if a, b := ids(t, p.Primary()), ids(t, old); a != "1,10,11,12" || b != "1,2" {
			t.Errorf("the new primary has the rows %s, the old one %s", a, b)
		}
	})
}

// What only the old primary has is thrown away with its data, and the two are a pair again.
func TestAnOldPrimaryIsMadeAnew(t *testing.T) {
	eachPair(t, func(t *testing.T, p *server.Pair) {
		diverge(t, p)
		insert(t, p, 3)
		if err := p.Rejoin(t.Context()); !errors.Is(err, server.ErrDiverged) {
			t.Fatalf("the old primary was brought back: %v", err)
		}
		begun := time.Now()
		must(t, p.Rebuild(t.Context()))
		t.Logf("made anew in %v", time.Since(begun))
		wantOnAll(t, p, "1,3")
		must(t, p.Switch(t.Context()))
		insert(t, p, 4)
		wantOnAll(t, p, "1,3,4")
	})
}

// A semi-synchronous primary acknowledges nothing without its replica, also after a restart.
func TestASemiSynchronousPrimaryStaysThat(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			p := servertest.RunPairOptions(t, kind, server.Options{SemiSync: true})
			must(t, p.Primary().Exec("CREATE TABLE t (id INT PRIMARY KEY)"))
			must(t, p.Primary().Kill())
			must(t, p.Primary().Start())
			must(t, p.CatchUp(t.Context()))
			must(t, p.Replica().Kill())
			done := make(chan error, 1)
			go func() { done <- p.Primary().Exec("INSERT INTO t VALUES (1)") }()
			select {
			case err := <-done:
				t.Errorf("acknowledged without a replica: %v", err)
			case <-time.After(500 * time.Millisecond):
			}
			must(t, p.Replica().Start())
			must(t, <-done)
			wantOnAll(t, p, "1")
		})
	}
}

// Of two replicas one takes over, with what only the other one has received, and the other one
// follows it.
func TestTwoReplicas(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			p := servertest.RunTriple(t, kind)
			must(t, p.Primary().Exec("CREATE TABLE t (id INT PRIMARY KEY)"))
			all := p.Servers()
			for i := range 4 {
				if p.Primary() != all[i%3] {
					t.Fatalf("after %d switches server %d is not the primary", i, i%3)
				}
				insert(t, p, i)
				begun := time.Now()
				must(t, p.Switch(t.Context()))
				t.Logf("switched in %v", time.Since(begun))
			}
			wantOnAll(t, p, "0,1,2,3")
			old, next, other := p.Primary(), p.Servers()[1], p.Servers()[2]
			must(t, next.Exec("STOP REPLICA IO_THREAD"))
			insert(t, p, 4)
			eventually(t, "the other replica has the row", func() bool { return ids(t, other) == "0,1,2,3,4" })
			must(t, old.Kill())
			begun := time.Now()
			must(t, p.Promote(t.Context()))
			t.Logf("promoted in %v", time.Since(begun))
			if p.Primary() != next || p.Replica() != other {
				t.Fatal("the first replica is not the primary, or the other one not its replica")
			}
			insert(t, p, 5)
			eventually(t, "the other replica follows the new primary", func() bool { return ids(t, other) == "0,1,2,3,4,5" })
			must(t, p.Rejoin(t.Context()))
			wantOnAll(t, p, "0,1,2,3,4,5")
			must(t, p.Rebuild(t.Context()))
			insert(t, p, 6)
			wantOnAll(t, p, "0,1,2,3,4,5,6")
		})
	}
}
