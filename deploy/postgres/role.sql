-- What PostgreSQL's image runs once, when its volume is new: gramfuse gets a role that owns its database and nothing else.
\getenv password POSTGRES_PASSWORD
CREATE ROLE gramfuse LOGIN PASSWORD :'password';
CREATE DATABASE gramfuse OWNER gramfuse ENCODING 'UTF8' TEMPLATE template0;
-- the superuser is reached from within the container alone, which asks no password there: from the network there is none
ALTER ROLE postgres PASSWORD NULL;
