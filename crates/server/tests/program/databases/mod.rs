//! Databases as participants, with real servers: every behaviour is shown on PostgreSQL and on
//! MariaDB, by one and the same test.

mod basics;
mod crashes;
mod holders;
mod proxy;
mod starts;
mod sweeps;
mod traps;
mod world;

/// Makes a test for each make of server out of a function.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(unanimity_databases::Make::PostgreSql).await;
                }
            )*
        }
        mod mariadb {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(unanimity_databases::Make::MariaDb).await;
                }
            )*
        }
    };
}
pub(crate) use on_both;
