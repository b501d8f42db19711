//! What goes beyond plain batch norm: ordinary tensor algebra around
//! [`moments`](crate::functional::moments) and [`normalize`](crate::functional::normalize), one file an
//! option.

pub(crate) mod weights;
