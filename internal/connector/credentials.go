// credentials.go is about logins that are refused because the credentials have changed, which
// the user's BeforeConnect gives.

package connector

import (
	"context"
	"database/sql/driver"
	"fmt"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// credentials say when new ones were last asked for.
type credentials struct {
	mu      sync.Mutex    // guards what follows
	asked   bool          // they were, once
	askedAt time.Duration // when
}

// refusedLoginKey is the context key by which a BeforeConnect learns that the credentials
// that it gave before were refused.
type refusedLoginKey struct{}

// RefusedLogin is that refusal, nil if there was none.
func RefusedLogin(ctx context.Context) error {
	err, _ := ctx.Value(refusedLoginKey{}).(error)
	return err
}

// newCredentialsEvery is how often new ones are asked for, at most, however many logins a
// server refuses.
const newCredentialsEvery = time.Second

// mayAsk says whether a login that was begun at start, and is refused, is to be tried again,
// and whether it is to ask for new credentials: one that was begun before the last that asked
// need not.
func (c *credentials) mayAsk(start, now time.Duration) (again, ask bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked && c.askedAt >= start {
		return true, false
	}
	if c.asked && now-c.askedAt < newCredentialsEvery {
		return false, false
	}
	c.asked, c.askedAt = true, now
	return true, true
}

// connectWithCredentials is connectDriver, and a second try where the server refuses the
// credentials of the user's BeforeConnect.
func (ctr *Connector) connectWithCredentials(ctx context.Context, by driver.Connector) (driver.Conn, error) {
	start := ctr.clock.Now()
	dc, refusal := ctr.connectDriver(ctx, by)
	if !mysqlerr.IsLoginRefused(refusal) || ctr.Cfg.MySQL == nil || !hasBeforeConnect(ctr.Cfg.MySQL) {
		return dc, refusal
	}
	again, ask := ctr.credentials.mayAsk(start, ctr.clock.Now())
	if !again {
		return nil, refusal
	}
	if ask {
		ctx = context.WithValue(ctx, refusedLoginKey{}, refusal)
	}
	dc, err := ctr.connectDriver(ctx, by)
	if err != nil && !mysqlerr.IsLoginRefused(err) {
		err = fmt.Errorf("%w; the login with new credentials failed: %v", refusal, err) //nolint:errorlint // it says nothing of the server, which has refused the login before
	}
	return dc, err
}
