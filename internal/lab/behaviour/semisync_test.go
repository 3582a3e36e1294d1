package behaviour_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
)

// A unit whose COMMIT waits for a replica that is gone is not reported as applied because its
// connection was lost: the primary may die with it. Nor is that of another client.
func TestACommitThatNoReplicaHasIsNotReported(t *testing.T) {
	for _, kind := range server.Kinds() {
		for _, bystander := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bystander=%t", kind, bystander), func(t *testing.T) {
				t.Parallel()
				h := hostPairOf(t, kind, "pool_timeout=1m&pool_max_elapsed=1m")
				if bystander && kind != server.MySQL { // both in one group commit
					if err := h.Primary().Exec("SET GLOBAL binlog_commit_wait_count = 2, GLOBAL binlog_commit_wait_usec = 500000"); err != nil {
						t.Fatal(err)
					}
				}
				if err := h.Replica().Exec("STOP REPLICA IO_THREAD"); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() {
					done <- h.pool.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						_, err := s.ExecContext(ctx, "INSERT INTO ledger (unit) VALUES (1)")
						return err
					}, livepool.VerifyCommit())
				}()
				other := make(chan error, 1)
				if bystander { // straight to the server, not through the proxy, behind the unit in the group
					labtest.Eventually(t, "COMMIT is there", func() bool {
						list, err := h.Primary().Processes()
						return err == nil && strings.Contains(fmt.Sprint(list), "COMMIT")
					})
					db := openPlain(t, h.Primary().DSN())
					go func() {
						_, err := db.Exec("INSERT INTO ledger (unit) VALUES (2)")
						other <- err
					}()
				}
				labtest.Eventually(t, "COMMIT waits for the replica", func() bool {
					list, err := h.Primary().Processes()
					return err == nil && strings.Contains(fmt.Sprint(list), "emi-sync ACK")
				})
				time.Sleep(300 * time.Millisecond)
				h.via[h.Primary()].FIN()
				var who string
				select {
				case err := <-done:
					who = fmt.Sprintf("the unit was told %v", err)
				case err := <-other:
					who = fmt.Sprintf("the bystander was told %v", err)
				case <-time.After(5 * time.Second):
				}
				if err := h.Primary().Kill(); err != nil {
					t.Fatal(err)
				}
				if err := h.Promote(t.Context()); err != nil {
					t.Fatal(err)
				}
				if who != "" {
					t.Errorf("%s, before any replica had it; the new primary has %d rows", who, count(t, h.Primary(), "ledger"))
				}
			})
		}
	}
}
