-- name: CreateAccount :execlastid
INSERT INTO example_accounts (balance) VALUES (?);

-- name: GetAccount :one
SELECT id, balance FROM example_accounts WHERE id = ?;
