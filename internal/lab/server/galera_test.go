package server_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// runGalera starts a cluster of three with a table t.
func runGalera(t *testing.T) (*server.Galera, []*server.Server) {
	t.Helper()
	begun := time.Now()
	g := servertest.RunGalera(t, 3)
	t.Logf("started in %v", time.Since(begun))
	must(t, g.Nodes()[0].Exec("CREATE TABLE t (id INT PRIMARY KEY)"))
	return g, g.Nodes()
}

// wantOn checks the rows of each node, waiting for what is on its way to it.
func wantOn(t *testing.T, nodes []*server.Server, want string) {
	t.Helper()
	for i, s := range nodes {
		var got string
		if err := open(t, s.DSN()+"?wsrep_sync_wait=1").QueryRow("SELECT GROUP_CONCAT(id ORDER BY id) FROM t").Scan(&got); err != nil || got != want {
			t.Errorf("node %d has the rows %s, %v; want %s", i, got, err, want)
		}
	}
}

func TestWhatOneGaleraNodeCommitsAllHave(t *testing.T) {
	_, nodes := runGalera(t)
	for i, s := range nodes {
		_, err := open(t, s.DSN()).Exec("INSERT INTO t VALUES (?)", i)
		must(t, err)
		wantOn(t, nodes, "0,1,2"[:2*i+1])
	}
}

func TestAGaleraNodeJoinsAgain(t *testing.T) {
	g, nodes := runGalera(t)
	for i, tt := range []struct {
		name string
		node int
		end  func() error
	}{
		{"killed, having founded the cluster", 0, func() error { return g.KillNode(0) }},
		{"killed", 2, func() error { return g.KillNode(2) }},
		{"stopped", 1, nodes[1].Stop},
	} {
		must(t, tt.end())
		begun := time.Now()
		must(t, nodes[(tt.node+1)%3].Exec("INSERT INTO t VALUES (?)", i))
		t.Logf("%s: another took a write after %v", tt.name, time.Since(begun))
		begun = time.Now()
		must(t, g.StartNode(t.Context(), tt.node))
		t.Logf("%s: joined in %v", tt.name, time.Since(begun))
		must(t, g.AwaitSynced(t.Context()))
		wantOn(t, nodes, "0,1,2"[:2*i+1])
	}
}

// A node that is ended while it gets what it missed has noted that its data may be of no use.
func TestAGaleraNodeJoinsAgainThatWasEndedWhileItJoined(t *testing.T) {
	g, nodes := runGalera(t)
	must(t, nodes[0].Exec("CREATE TABLE b (id INT AUTO_INCREMENT PRIMARY KEY, b LONGBLOB)"))
	note := filepath.Join(filepath.Dir(nodes[2].Socket()), "data", "grastate.dat")
	missed := 0
	endedMeanwhile := func() bool {
		must(t, g.KillNode(2))
		must(t, nodes[0].Exec(strings.Repeat("INSERT INTO b (b) VALUES (REPEAT('x', 100000));", 20)))
		missed += 20
		ctx, end := context.WithCancel(t.Context())
		defer end()
		started := make(chan error, 1)
		go func() { started <- g.StartNode(ctx, 2) }()
		for {
			select {
			case err := <-started:
				must(t, err)
				return false // it was too quick
			case <-time.After(time.Millisecond):
			}
			state, err := os.ReadFile(note)
			if err == nil && strings.Contains(string(state), "00000000-0000-0000-0000-000000000000") {
				end()
				return <-started != nil
			}
		}
	}
	for !endedMeanwhile() {
		if missed > 100 {
			t.Fatal("it always joins before it is ended: the test shows nothing")
		}
	}
	must(t, nodes[0].Exec("INSERT INTO t VALUES (1)"))
	must(t, g.StartNode(t.Context(), 2))
	must(t, g.AwaitSynced(t.Context()))
	wantOn(t, nodes, "1")
	var rows int
	must(t, nodes[2].QueryRow("SELECT COUNT(*) FROM b", &rows))
	if rows != missed {
		t.Errorf("%d rows, want %d", rows, missed)
	}
}

func TestAGaleraNodeThatMissedTooMuchSaysSo(t *testing.T) {
	g, nodes := runGalera(t)
	must(t, nodes[0].Exec("CREATE TABLE b (id INT AUTO_INCREMENT PRIMARY KEY, b LONGBLOB)"))
	must(t, g.KillNode(2))
	eventually(t, "the others notice", func() bool {
		var name, size string
		must(t, nodes[0].QueryRow("SHOW STATUS LIKE 'wsrep_cluster_size'", &name, &size))
		return size == "2"
	})
	// More than the others keep; and what they may drop they learn once in a hundred transactions.
	for range 2 {
		must(t, nodes[0].Exec(strings.Repeat("INSERT INTO b (b) VALUES (REPEAT('x', 1000000));", 15)))
		must(t, nodes[0].Exec(strings.Repeat("INSERT INTO b (b) VALUES ('');", 300)))
	}
	begun := time.Now()
	if err := g.StartNode(t.Context(), 2); err == nil || !strings.Contains(err.Error(), "cannot join again") {
		t.Errorf("want an error that says why it does not join, got: %v", err)
	}
	t.Logf("said so after %v", time.Since(begun))
	if _, err := open(t, nodes[0].DSN()).Exec("INSERT INTO t VALUES (1)"); err != nil {
		t.Errorf("the others: %v", err)
	}
}

func TestAnIsolatedGaleraNodeAnswersAndDoesNoWork(t *testing.T) {
	const unknownCommand = 1047
	g, nodes := runGalera(t)
	db := open(t, nodes[2].DSN())
	for round := range 2 {
		must(t, nodes[0].Exec("INSERT INTO t VALUES (?)", 10*round))
		tx := begin(t, nodes[2], fmt.Sprintf("INSERT INTO t VALUES (%d)", 10*round+1))
		begun := time.Now()
		must(t, g.Isolate(t.Context(), 2))
		t.Logf("isolated in %v", time.Since(begun))
		if err := tx.Commit(); err == nil {
			t.Error("COMMIT of a transaction begun before succeeded")
		} else {
			t.Logf("COMMIT of a transaction begun before: %v", err)
		}
		for _, query := range []string{"SELECT COUNT(*) FROM t", "INSERT INTO t VALUES (100)", "BEGIN"} {
			if _, err := db.Exec(query); number(err) != unknownCommand {
				t.Errorf("%s: %v", query, err)
			}
		}
		if err := db.Ping(); err != nil {
			t.Errorf("ping: %v", err)
		}
		var one int
		if err := db.QueryRow("SELECT 1").Scan(&one); err != nil {
			t.Errorf("SELECT 1: %v", err)
		}
		if _, err := nodes[2].Processes(); err != nil {
			t.Logf("processes: %v", err)
		}
		_, err := open(t, nodes[0].DSN()).Exec("INSERT INTO t VALUES (?)", 10*round+2)
		must(t, err)
		begun = time.Now()
		must(t, g.Heal(t.Context(), 2))
		t.Logf("healed in %v", time.Since(begun))
		must(t, g.AwaitSynced(t.Context()))
		wantOn(t, nodes, []string{"0,2", "0,2,10,12"}[round])
	}
}
