package behaviour_test

// Credentials that change: a token that is good for minutes, a user who is replaced.

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// credentials are what a BeforeConnect keeps, as one does that asks a secret store: it asks
// again only when the server refuses what it has.
type credentials struct {
	mu      sync.Mutex
	store   [2]string // the user and the password of the secret store
	kept    [2]string
	logins  int // how often it was asked for the first time
	refused int // and again, because the server refused what was kept
}

func (c *credentials) set(my *mysql.Config, user string) {
	c.store = [2]string{user, user}
	c.kept = c.store
	my.Apply(mysql.BeforeConnect(func(ctx context.Context, my *mysql.Config) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if livepool.RefusedLogin(ctx) != nil {
			c.refused++
			c.kept = c.store
		} else {
			c.logins++
		}
		my.User, my.Passwd = c.kept[0], c.kept[1]
		return nil
	}))
}

func (c *credentials) rotate(user, password string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store, c.logins = [2]string{user, password}, 0
}

func (c *credentials) refusals() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused
}

func createUser(t *testing.T, s *server.Server, user string) {
	t.Helper()
	for _, q := range []string{
		fmt.Sprintf("CREATE USER %s@'%%' IDENTIFIED BY '%s'", user, user),
		fmt.Sprintf("GRANT ALL ON test.* TO %s@'%%'", user),
	} {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
}

// A password is replaced: the next login, of a caller or of a KILL, is refused once, asks for
// the new one and is made.
func TestPasswordIsReplaced(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		createUser(t, s, "app1")
		cred := &credentials{}
		p := openWith(t, s.DSN(), func(c *livepool.Config) {
			c.PoolSize, c.MaxOverflow = 2, 0
			cred.set(c.MySQL, "app1")
		})
		if err := p.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Exec("ALTER USER app1@'%' IDENTIFIED BY 'app2'"); err != nil {
			t.Fatal(err)
		}
		cred.rotate("app1", "app2")
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if _, err := p.ExecContext(ctx, "DO SLEEP(60)"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		labtest.Eventually(t, "what it left is killed", func() bool { return p.Stats().Killed == 1 })
		for range 3 {
			if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
				t.Error(err)
			}
			p.Recycle()
		}
		if n := cred.refusals(); n != 1 {
			t.Errorf("%d logins were refused, want that of the KILL alone", n)
		}
		time.Sleep(1100 * time.Millisecond) // new ones are asked for once a second
		cred.rotate("app1", "wrong")
		if err := s.Exec("ALTER USER app1@'%' IDENTIFIED BY 'app3'"); err != nil {
			t.Fatal(err)
		}
		p.Recycle()
		if _, err := p.ExecContext(t.Context(), "DO 1"); !labtest.IsServerError(err, 1045) {
			t.Errorf("%v, want that the login is refused", err)
		}
		p.Close() // it opens no more
		cred.mu.Lock()
		defer cred.mu.Unlock()
		if again := cred.refused - 1; again == 0 || again > cred.logins {
			t.Errorf("%d logins were refused, and tried again %d times, want once each", cred.logins, again)
		}
	})
}

// The user is replaced by another under units at work, as by a secret store whose lease ends:
// no unit fails, and after Recycle no connection of the old user is left.
func TestUserIsReplaced(t *testing.T) {
	for _, kind := range server.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			s, _ := openLedger(t, kind)
			createUser(t, s, "lease1")
			cred := &credentials{}
			p := openWith(t, s.DSN(), func(c *livepool.Config) {
				c.PoolSize, c.MaxOverflow, c.MinIdle = 4, 0, 2
				cred.set(c.MySQL, "lease1")
			})
			labtest.CheckNoErrors(t, labtest.StartUnits(t.Context(), 8, p, labtest.Insert(1))())
			for old := 1; old <= 2; old++ {
				was, is := fmt.Sprintf("lease%d", old), fmt.Sprintf("lease%d", old+1)
				stop := make(chan struct{})
				atWork := labtest.StartUnits(t.Context(), 8, p, func(ctx context.Context, s *livepool.Session) error {
					for {
						select {
						case <-stop:
							return nil
						default:
							if _, err := s.ExecContext(ctx, "DO SLEEP(0.01)"); err != nil {
								return err
							}
						}
					}
				})
				createUser(t, s, is)
				time.Sleep(1100 * time.Millisecond) // new credentials are asked for once a second
				cred.rotate(is, is)
				if err := s.Exec("ALTER USER " + was + "@'%' IDENTIFIED BY 'no longer'"); err != nil {
					t.Fatal(err)
				}
				p.Recycle()
				close(stop)
				labtest.CheckNoErrors(t, atWork())
				labtest.CheckNoErrors(t, labtest.StartUnits(t.Context(), 8, p, labtest.Insert(1))())
				labtest.Eventually(t, "no connection of "+was, func() bool {
					list, err := s.Processes()
					return err == nil && !slices.ContainsFunc(list, func(p server.Process) bool { return p.User == was })
				})
			}
			if n := cred.refusals(); n < 2 {
				t.Errorf("%d logins were refused: the test shows nothing", n)
			}
		})
	}
}
