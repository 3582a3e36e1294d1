// Package transfer is code that runs on livepool and is tested without a server: see its test.
package transfer

import (
	"context"
	"errors"
	"fmt"

	"github.com/livepool/livepool"
)

// ErrShort says that there is not enough on the account.
var ErrShort = errors.New("there is not enough on the account")

// Transfer moves cents from one account to another, once for each id.
func Transfer(ctx context.Context, db *livepool.Pool, id, from, to, cents int64) error {
	return db.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		res, err := s.ExecContext(ctx, "UPDATE accounts SET cents = cents - ? WHERE id = ? AND cents >= ?", cents, from, cents)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, fmt.Errorf("account %d: %w", from, ErrShort))
		}
		_, err = s.ExecContext(ctx, "UPDATE accounts SET cents = cents + ? WHERE id = ?", cents, to)
		return err
	}, livepool.Once(fmt.Sprint("transfer:", id)))
}
