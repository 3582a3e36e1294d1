-- name: Insert :exec
INSERT INTO items (v, big, note, at) VALUES (?, ?, ?, ?);

-- name: Find :many
SELECT id, v, big, note, at FROM items WHERE v = ?;
