//! The library and its sessions.
//!
//! A PKCS#11 library is initialised once in a process, whoever uses it, and ends for all at once. So there is one
//! [`Library`] for each file, shared by all tokens that are open in the process. It keeps idle sessions, lends them out,
//! and starts itself anew when a fresh session does not help: some libraries see a device that came back only then. To end
//! a library while a call is under way in it would be undefined, hence it is condemned first and ended by whoever finds
//! that nothing is lent out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error as Pkcs11Error, RvError};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use quorate_runtime::Secret;

use crate::HsmError;
use crate::token::Connection;

/// Whose sessions.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) library: PathBuf,
    pub(crate) token: String,
    pub(crate) pin: Secret,
}

/// The libraries in use, by file: the state is the process's anyway.
static LIBRARIES: Mutex<BTreeMap<PathBuf, Arc<Library>>> = Mutex::new(BTreeMap::new());

/// One library.
#[derive(Debug)]
pub(crate) struct Library {
    path: PathBuf,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    context: Option<Pkcs11>,
    /// Counts the starts of the library; sessions of earlier ones mean nothing.
    generation: u64,
    condemned: bool,
    /// Sessions that are lent out or being opened.
    lent: usize,
    idle: Vec<Connection>,
}

/// How far to go to get a session that works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// An idle one will do.
    Any,
    /// A new one.
    Fresh,
    /// A new one of a library started anew.
    Restarted,
}

impl Library {
    /// The library of this file.
    pub(crate) fn of(path: &Path) -> Arc<Self> {
        let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
        let library = libraries.entry(path.to_owned()).or_insert_with(|| {
            Arc::new(Self {
                path: path.to_owned(),
                state: Mutex::default(),
                returned: Condvar::new(),
            })
        });
        Arc::clone(library)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work` in a session of the token, trying harder and harder to get one that works. Work that is not
    /// `repeatable` is begun once.
    pub(crate) fn work<T>(
        &self,
        access: &Access,
        pin_refused: &AtomicBool,
        deadline: Instant,
        repeatable: bool,
        work: &dyn Fn(&mut Connection) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        let efforts = [Effort::Any, Effort::Fresh, Effort::Restarted];
        let mut last = HsmError::Unavailable {
            reason: "no session".to_owned(),
        };
        for effort in efforts {
            if Instant::now() >= deadline {
                break;
            }
            let mut begun = false;
            let done =
                self.lend(access, pin_refused, effort, deadline)
                    .and_then(|mut connection| {
                        begun = true;
                        let result = work(&mut connection);
                        let healthy = !matches!(&result, Err(error) if error.is_of_connection());
                        self.take_back(connection, healthy);
                        result
                    });
            match done {
                Err(error) if error.is_of_connection() && (repeatable || !begun) => {
                    tracing::debug!(token = access.token, %error, ?effort, "a request to the HSM failed");
                    last = error;
                }
                done => return done,
            }
        }
        Err(last)
    }

    fn lend(
        &self,
        access: &Access,
        pin_refused: &AtomicBool,
        effort: Effort,
        deadline: Instant,
    ) -> Result<Connection, HsmError> {
        let (context, generation) = {
            let mut state = self.lock();
            match effort {
                Effort::Any => {
                    let fitting = |connection: &Connection| connection.token == access.token;
                    if !state.condemned
                        && let Some(index) = state.idle.iter().position(fitting)
                    {
                        state.lent += 1;
                        return Ok(state.idle.swap_remove(index));
                    }
                }
                Effort::Fresh => state
                    .idle
                    .retain(|connection| connection.token != access.token),
                Effort::Restarted => {
                    state.condemned = true;
                    state.idle.clear();
                }
            }
            let mut state = self.started(state, deadline)?;
            let context = state.context.clone().ok_or_else(|| HsmError::Unavailable {
                reason: "the library has not been started".to_owned(),
            })?;
            state.lent += 1;
            (context, state.generation)
        };
        let opened = open(&context, access, pin_refused, generation);
        if opened.is_err() {
            self.returned_one(&mut self.lock());
        }
        opened
    }

    /// Starts the library, or starts it anew if it was condemned.
    fn started<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, State>, HsmError> {
        while state.condemned && state.lent > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HsmError::Unavailable {
                    reason: "calls under way do not end".to_owned(),
                });
            }
            state = self
                .returned
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if state.condemned {
            state.condemned = false;
            if let Some(context) = state.context.take() {
                // What it says does not matter: it is started again in any case.
                let _ = context.finalize();
            }
        }
        if state.context.is_none() {
            let context = Pkcs11::new(&self.path).map_err(|error| HsmError::Library {
                library: self.path.clone(),
                reason: error.to_string(),
            })?;
            match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
                Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(error) => return Err(error.into()),
            }
            state.generation += 1;
            state.context = Some(context);
        }
        Ok(state)
    }

    fn take_back(&self, connection: Connection, healthy: bool) {
        let mut state = self.lock();
        if healthy && !state.condemned && connection.generation == state.generation {
            state.idle.push(connection);
        } else {
            // Closed before the library can be ended.
            drop(connection);
        }
        self.returned_one(&mut state);
    }

    fn returned_one(&self, state: &mut State) {
        state.lent -= 1;
        self.returned.notify_all();
    }
}

fn open(
    context: &Pkcs11,
    access: &Access,
    pin_refused: &AtomicBool,
    generation: u64,
) -> Result<Connection, HsmError> {
    let refused = |reason: String| HsmError::PinRefused {
        token: access.token.clone(),
        reason,
    };
    if pin_refused.load(Ordering::Acquire) {
        return Err(refused("earlier".to_owned()));
    }
    let mut present = Vec::new();
    let mut found = None;
    for slot in context.get_slots_with_initialized_token()? {
        let label = context.get_token_info(slot)?.label().trim_end().to_owned();
        if label == access.token {
            found = Some(slot);
        }
        present.push(label);
    }
    let slot = found.ok_or_else(|| HsmError::TokenMissing {
        token: access.token.clone(),
        present,
    })?;
    let session = context.open_rw_session(slot)?;
    let pin = AuthPin::new(access.pin.expose().to_owned().into());
    match session.login(UserType::User, Some(&pin)) {
        Ok(()) | Err(Pkcs11Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
        Err(Pkcs11Error::Pkcs11(
            code @ (RvError::PinIncorrect
            | RvError::PinInvalid
            | RvError::PinLenRange
            | RvError::PinExpired
            | RvError::PinLocked),
            _,
        )) => {
            pin_refused.store(true, Ordering::Release);
            return Err(refused(code.to_string()));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Connection::new(session, access.token.clone(), generation))
}
