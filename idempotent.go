// idempotent.go lets a caller vouch for statements that may run twice.

package livepool

import "context"

// idempotentKey is under what a context vouches: true, or the losses of a
// Pool.Retry.
type idempotentKey struct{}

// Idempotent returns a context under which a statement outside a transaction
// may be sent again after its connection was lost, even if it may have run:
// the caller vouches that running it twice does no harm. Without it a
// statement that was written and not answered fails with
// mysql.ErrInvalidConn. It changes nothing inside a transaction.
func Idempotent(ctx context.Context) context.Context {
	return context.WithValue(ctx, idempotentKey{}, true)
}

// isIdempotent is asked only after a loss, so that it costs nothing before.
func isIdempotent(ctx context.Context) bool { return ctx.Value(idempotentKey{}) != nil }
