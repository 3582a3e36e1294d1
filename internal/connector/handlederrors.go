package connector

import (
	"errors"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/sqltext"
)

// extent is how much of a statement ran before it failed.
type extent int

const (
	ranNothing extent = iota // nothing was sent, or only prepared
	ranWhole                 // all of it was sent, and the server has undone it
	ranInPart                // a part may have been done, or seen by the program
)

// extentOf is the extent of a statement that failed and, if sent, was executed.
func (c *conn) extentOf(query string, kind requestKind, sent bool) extent {
	switch {
	case !sent, kind == effectlessRequest:
		return ranNothing
	case c.mayBeMultiStatement(query), sqltext.Scan(query)&sqltext.Hidden != 0:
		return ranInPart
	}
	return ranWhole
}

// maySwallow says whether a unit may be committed although its function swallowed err,
// which ended neither connection nor transaction. With another driver it understands only
// errors of the MySQL driver's types.
func (c *conn) maySwallow(err error, query string, ran extent) bool {
	if class, decided := c.ctr.override(err); decided {
		return class == 0
	}
	var my *mysql.MySQLError
	switch server := errors.As(err, &my); {
	case server && (my.Number == lockWaitTimeout || my.Number == lockNoWait) && sqltext.AsksNotToWait(query):
		return true // it got what it asked for
	case server:
		return ran != ranInPart && mysqlerr.ClassifyServer(my) == 0 && mysqlerr.IsHandled(my)
	case errors.Is(err, mysql.ErrPktTooLarge):
		return false // as after 1153, the server's error for the same
	case errors.Is(err, errResultOpen), errors.Is(err, mysql.ErrBusyBuffer), errors.As(err, new(*unsentError)),
		mysqlerr.CallerGaveUp(err):
		return false // the statement is missing, and not because of its text or data
	}
	return !c.ctr.IsMySQL || ran == ranNothing
}

// lockNoWait is ER_LOCK_NOWAIT.
const lockNoWait = 3572
