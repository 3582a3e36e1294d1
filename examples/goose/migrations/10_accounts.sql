-- +goose Up
CREATE TABLE example_accounts (id BIGINT AUTO_INCREMENT PRIMARY KEY, balance BIGINT NOT NULL);
