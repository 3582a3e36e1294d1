ALTER TABLE example_accounts ADD COLUMN owner VARCHAR(40) NOT NULL DEFAULT 'nobody';
