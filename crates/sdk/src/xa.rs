//! Branches that a database itself prepares, inside a service's own connection: the service says
//! only what is to be done, in one function; commit and rollback are the database's, and may be run
//! by any process of the service.
//!
//! [`name`] decides how a branch is called there, `engine` the course of a call, [`postgres`] and
//! [`mariadb`] the statements.
//!
//! There is a guard here too, of two parts. That a branch is prepared, the database itself
//! remembers, under the branch's name. And in the branch lies a row of the guard's table, which
//! says "committed": it becomes visible with the commit, so that a repeated one is known; and its
//! key is taken as long as the branch is prepared, so that neither a second prepare nor an early
//! rollback can be there beside it.

#[cfg(any(feature = "postgres", feature = "mariadb"))]
mod engine;
#[cfg(feature = "mariadb")]
pub mod mariadb;
pub mod name;
#[cfg(feature = "postgres")]
pub mod postgres;

/// The number by which a service's branches are known in a database, made of its name. Every
/// process of the service uses the same name, and no other service on the same database server
/// does.
#[must_use]
pub fn owner(service: &str) -> u64 {
    let text = format!("unanimity service {service}");
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).as_u64_pair().0
}

#[cfg(test)]
mod tests {
    /// Names with it are in databases: were it to change, branches in doubt would be nobody's.
    #[test]
    fn a_services_number_never_changes() {
        assert_eq!(super::owner("bank A"), 11_267_880_872_315_674_368);
        assert_ne!(super::owner("bank A"), super::owner("bank B"));
    }
}
