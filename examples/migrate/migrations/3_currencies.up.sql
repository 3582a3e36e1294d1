CREATE TABLE example_currencies (code CHAR(3) PRIMARY KEY, digits INT NOT NULL);
INSERT INTO example_currencies VALUES ('EUR', 2), ('JPY', 0);
